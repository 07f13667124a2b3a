#include "forward.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <iterator>

namespace npgpt {

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

bool Pace::together() {
    token = (token + 1) % TOKENS;
    if (token == 0) best[0] = best[1] = INFINITY;
    if (token < 2 * TRIALS) began = now();
    return token < TRIALS || (token >= 2 * TRIALS && best[0] <= best[1]);
}

void Pace::done() {
    if (token < 2 * TRIALS) best[token / TRIALS] = std::min(best[token / TRIALS], now() - began);
}

namespace {

constexpr Index K_BLOCK = 320;         // rows of a packed panel at most: (K,16) stays in L1
constexpr Index STRIP_PANELS = 4;      // panels of weights that a thread packs at a time
constexpr Index MIN_WORK = 1 << 12;    // multiply-adds of an op that is worth cutting
constexpr Index ITEM_WORK = 1 << 15;   // and of a part of it, where each thread has one
constexpr Index THREAD_WORK = 1 << 17; // of a pass, for each thread
constexpr Index PACED_WORK = 8 << 20;  // of a token, below which one thread may be faster than all
constexpr Index SMALL = 512;           // channels of a model whose steps take about a microsecond
constexpr Index ATTENTION_KEYS = 96;   // a block of keys (kernels.h, attend_block)
constexpr Index NORMED = 8;            // rows of a layernorm that a thread takes at a time

using Activation = void (*)(float* y, const float* x, Index n);

// One thread's walk through a pass: each shares the items of every step with the others. What a step reads was written
// by an earlier one, or by the same thread into its own work space.
struct Pass {
    const Model& model;
    const Kernels& kernels;
    Team& team;
    const Index M;     // tokens
    const bool wide;
    const int workers;
    float *a, *packed;   // (M,C); x in panels or blocks
    float *gate, *turns; // (M,F) behind SwiGLU; (M,D): cosines and sines of each token's angles
    float* scratch;      // (workers, each)
    const Index each, row;

    float* own_row(int worker) const { return scratch + worker * each; }  // the widest input, then the same in blocks
    float* work_space(int worker) const { return own_row(worker) + row; }

    static Index k_block(Index K) {  // equal parts, multiples of 32: a function of K alone
        const Index blocks = (K + K_BLOCK - 1) / K_BLOCK;
        return blocks <= 1 ? K : round_up((K + blocks - 1) / blocks, 32);
    }

    // y (rows,N) = or += x (rows,K) w + bias, then the activation; where a norm is given, of x normed by it; with `gated` of
    // SwiGLU of x (rows,2K)
    void linear(float* y, const float* x, const Linear& w, Index rows, bool add = false, const Norm* ln = nullptr,
                Activation activation = nullptr, bool gated = false) const {
        if (rows == 1) {
            OneRow row(*this, x, w, ln, gated);
            in_parts(w, 1, [&](const Linear::Part& part, Index first, Index count, int worker) {
                outputs(y, w.N, row.input(worker), part, first, count, 1, add, activation);
            });
            return;
        }
        if (ln) {
            norm(a, x, *ln, rows);
            x = a;
        }
        if (gated) {
            team.share(rows, [&](Index i, int) { kernels.swiglu_forward(gate + i * w.K, x + i * 2 * w.K, 1, w.K); });
            x = gate;
        }
        const bool in_panels = wide && rows == M;  // all that is not in blocks
        for (const Linear::Part& part : w.parts)
            if (in_panels && part.weight.N && !in_blocks(part)) many(y, w.N, x, part, add, activation);
        if (in_panels && !in_blocks(w)) return;
        for (Index row = 0; row < rows; row += CHUNK, x += CHUNK * w.K, y += CHUNK * w.N) {
            const Index n = std::min(CHUNK, rows - row);
            if (in_blocks(w))
                team.share(n, [&](Index i, int) { kernels.round_int8(blocks(packed), x + i * w.K, i, 1, n, w.K); });
            in_parts(w, n, [&](const Linear::Part& part, Index first, Index count, int) {
                if (!in_panels || in_blocks(part))
                    outputs(y, w.N, {x, blocks(packed)}, part, first, count, n, add, activation);
            });
        }
    }

    static bool in_blocks(const Linear::Part& part) { return block_length(part.weight.type) > 1; }
    static bool in_blocks(const Linear& w) {
        return std::any_of(std::begin(w.parts), std::end(w.parts),
                           [](const Linear::Part& part) { return in_blocks(part); });
    }
    static Int8Block* blocks(float* space) { return reinterpret_cast<Int8Block*>(space); }

    struct Input {  // of a linear layer: rows of floats, or blocks as those of its weights
        const float* x;
        const Int8Block* blocks;
    };

    // Each thread norms and rounds the one row of a token for itself: that takes less time than to wait for another.
    struct OneRow {
        OneRow(const Pass& pass, const float* x, const Linear& w, const Norm* ln, bool gated)
            : pass(pass), x(x), w(w), ln(ln), gated(gated) {}
        Input input(int worker) {
            if (ready) return own;
            float* space = pass.own_row(worker);
            own = {x, blocks(space + w.K)};
            if (ln) pass.norm_rows(space, x, *ln, 1), own.x = space;
            if (gated) pass.kernels.swiglu_forward(space, x, 1, w.K), own.x = space;
            if (in_blocks(w)) pass.kernels.round_int8(blocks(space + w.K), own.x, 0, 1, 1, w.K);
            ready = true;
            return own;
        }

        const Pass& pass;
        const float* const x;
        const Linear& w;
        const Norm* const ln;
        const bool gated;
        Input own{};
        bool ready = false;
    };

    // Outputs [first, first + count) of a part of a layer whose output 0 is y
    void outputs(float* y, Index ldy, Input input, const Linear::Part& part, Index first, Index count, Index rows,
                 bool add, Activation activation) const {
        const Matrix& w = part.weight;
        y += part.begin + first;
        if (in_blocks(part))
            kernels.matvec_int8(y, ldy, input.blocks, w, first, count, rows, add, part.bias);
        else
            kernels.matvec(y, ldy, input.x, w.K, w, first, count, rows, add, part.bias);
        activate(y, ldy, rows, count, activation);
    }

    static void activate(float* y, Index ldy, Index rows, Index n, Activation activation) {
        if (activation)
            for (Index m = 0; m < rows; m++) activation(y + m * ldy, y + m * ldy, n);
    }

    // body(part, first, count, worker) for cuts of each part's outputs
    template <class Body>
    void in_parts(const Linear& w, Index rows, Body&& body) const {
        Index sizes[Linear::PARTS], begins[Linear::PARTS + 1] = {};
        for (int i = 0; i < Linear::PARTS; i++) {
            const Matrix& part = w.parts[i].weight;
            sizes[i] = std::max(Index(1), part_of(part, rows));
            begins[i + 1] = begins[i] + (part.N + sizes[i] - 1) / sizes[i];
        }
        team.share(begins[Linear::PARTS], [&](Index item, int worker) {
            int i = 0;
            while (item >= begins[i + 1]) i++;
            const Linear::Part& part = w.parts[i];
            const Index first = (item - begins[i]) * sizes[i];
            body(part, first, std::min(sizes[i], part.weight.N - first), worker);
        });
    }

    // Outputs that a thread makes at a time
    Index part_of(const Matrix& w, Index rows) const {
        if (rows * w.N * w.K < MIN_WORK) return w.N;
        const Index share = round_up((w.N + workers - 1) / workers, STRIP);
        // Columns lie in short pieces of each row of memory: the longer those, the faster it is read.
        if (w.type == COLUMNS && rows == 1) return std::min(Index(1536), share);
        const Index least = std::min(share, round_up(ITEM_WORK / (rows * w.K), 16));
        return std::max({least, Index(16), std::min(Index(256), round_up(w.N / (4 * workers), 16))});
    }

    // The same with the packed product of the engine: each thread unpacks strips of w into its cache for all tokens.
    void many(float* y, Index ldy, const float* x, const Linear::Part& part, bool add, Activation activation) const {
        const Matrix& w = part.weight;
        y += part.begin;
        const Index MR = kernels.tile_m, NR = kernels.tile_n, K = w.K, N = w.N, kc = k_block(K);
        const Index padded = round_up(M, MR), k_blocks = (K + kc - 1) / kc, panels = padded / MR;
        team.share(k_blocks * panels, [&](Index item, int) {
            const Index k = item / panels * kc, row = item % panels * MR, kn = std::min(kc, K - k);
            kernels.pack_a(packed + k * padded + row * kn, x + row * K + k, K, 1, std::min(MR, M - row), kn, kn);
        });
        const Index columns = STRIP_PANELS * NR;
        team.share((N + columns - 1) / columns, [&](Index item, int worker) {
            float *strip = work_space(worker), *rows = strip + columns * kc;
            const Index first = item * columns, count = std::min(columns, N - first);
            for (Index k = 0; k < K; k += kc) {
                const Index kn = std::min(kc, K - k);
                if (w.type == COLUMNS)
                    for (Index j = 0, n; j < count; j += n) {
                        n = std::min(w.strip - (first + j) % w.strip, count - j);
                        kernels.pack_b(strip + j * kn, column(w, k, first + j), w.strip, 1, kn, n, kn);
                    }
                else
                    for (Index j = 0; j < count; j += NR) {
                        kernels.unpack_rows(rows, w, first + j, std::min(NR, count - j), k, kn);
                        kernels.pack_b(strip + j * kn, rows, 1, kn, kn, std::min(NR, count - j), kn);
                    }
                Epilogue end;
                end.bias = part.bias && k + kn == K ? part.bias + first : nullptr;
                kernels.matmul_block(y + first, ldy, packed + k * padded, 0, strip, M, count, kn, add || k > 0, &end);
            }
            activate(y + first, ldy, M, count, activation);
        });
    }

    void norm(float* y, const float* x, const Norm& ln, Index rows) const {
        const Index C = model.config.n_embd;
        team.share((rows + NORMED - 1) / NORMED, [&](Index item, int) {
            const Index row = item * NORMED;
            norm_rows(y + row * C, x + row * C, ln, std::min(NORMED, rows - row));
        });
    }

    void norm_rows(float* y, const float* x, const Norm& ln, Index rows) const {
        float mean[NORMED], rstd[NORMED];
        const npgpt_config& c = model.config;
        if (c.rms_norm)
            kernels.rmsnorm_forward(y, rstd, x, ln.weight, rows, c.n_embd, c.layer_norm_epsilon);
        else
            kernels.layernorm_forward(y, mean, rstd, x, ln.weight, ln.bias, rows, c.n_embd, c.layer_norm_epsilon);
    }

    void embed(float* x, const Piece* pieces, Index count) const {
        const Index C = model.config.n_embd, tokens = count == 1 ? M : 1;  // of a piece
        team.share(M, [&](Index row, int worker) {
            const Piece& piece = pieces[row / tokens];
            float *y = x + row * C, *learned = own_row(worker);
            const Index position = piece.position + row % tokens;
            kernels.unpack_rows(y, model.wte, piece.ids[row % tokens], 1, 0, C);
            if (model.wpe.data) {
                kernels.unpack_rows(learned, model.wpe, position, 1, 0, C);
                kernels.add(y, learned, C);
            }
            const Index half = Index(model.speeds.size());
            for (Index i = 0; i < half; i++) {  // multiplied in float32, as the engine does
                const double angle = double(float(position) * model.speeds[size_t(i)]);
                turns[row * 2 * half + i] = float(std::cos(angle)),
                                       turns[(row * 2 + 1) * half + i] = float(std::sin(angle));
            }
        });
    }

    // Heads of a token, turned by its position; where pairs lie side by side, the first of all come before the second then
    void turn(float* x, Index heads, Index row, int worker) const {
        const Index D = model.config.head_size, half = D / 2;
        if (!model.config.rope_theta) return;
        float* pairs = own_row(worker);
        for (Index head = 0; model.in_pairs && head < heads; head++) {
            std::copy_n(x + head * D, D, pairs);
            for (Index i = 0; i < half; i++) x[head * D + i] = pairs[2 * i], x[head * D + half + i] = pairs[2 * i + 1];
        }
        kernels.rotate(x, heads, half, turns + row * D, turns + row * D + half, 1);
    }

    // out (M,HD) of x (M,C) by way of qkv (M,N), whose keys and values go into the caches
    void attention(float* out, float* qkv, const float* x, const Linear& c_attn, const Norm* ln, const Piece* pieces,
                   Index count, Index layer) const {
        const npgpt_config& c = model.config;
        const Index H = c.n_head, KV = c.n_kv_head, D = c.head_size, N = (H + 2 * KV) * D;
        const Index window = c.window && layer % 2 ? c.window : Index(1) << 28;
        // Of a small model's token each head makes its own query, key and value: a step less.
        const bool by_heads = M == 1 && c.n_embd <= SMALL && H % workers == 0 && H == KV && !c.rope_theta;
        const auto keys_of = [&](const Piece& piece, Index head) {  // where they lie in the cache, and the values
            return (layer * KV + head) * piece.cache.context * D;
        };
        const Index tokens = count == 1 ? M : 1;  // of a piece
        // A token's key and value of a head go to the cache; the key is turned before, and the queries that will meet it.
        const auto remember = [&](Index row, Index head, int worker) {
            const Piece& piece = pieces[row / tokens];
            const Index at = keys_of(piece, head) + (piece.position + row % tokens) * D;
            float* k = qkv + row * N + (H + head) * D;
            turn(k, 1, row, worker), turn(qkv + row * N + head * (H / KV) * D, H / KV, row, worker);
            std::memcpy(piece.cache.keys + at, k, size_t(D) * sizeof(float));
            std::memcpy(piece.cache.values + at, k + KV * D, size_t(D) * sizeof(float));
        };
        OneRow one(*this, x, c_attn, ln, false);
        if (!by_heads) linear(qkv, x, c_attn, M, false, ln);
        if (KV < H)  // several heads of queries wait for one of keys
            team.share(M * KV, [&](Index item, int worker) { remember(item / KV, item % KV, worker); });
        team.share(count * H, [&](Index item, int worker) {
            const Index row = item / H, head = item % H;  // the piece's first row: of several each has one
            const Piece& piece = pieces[row];
            const Index at = keys_of(piece, head / (H / KV));
            float *keys = piece.cache.keys + at, *values = piece.cache.values + at;
            float* scores = work_space(worker);
            const float* q = qkv + row * N + head * D;
            float* y = out + row * H * D + head * D;
            if (by_heads)
                for (Index part = 0; part < 3; part++)
                    outputs(qkv, N, one.input(worker), c_attn.parts[0], (part * H + head) * D, D, 1, false, nullptr);
            for (Index t = 0; KV == H && t < piece.count; t++) remember(row + t, head, worker);
            if (wide)
                kernels.attend_block(y, H * D, scores, q, N, keys, values, piece.count, piece.position + piece.count,
                                     window, D, c.scale);
            else
                for (Index t = 0, seen = piece.position + 1; t < piece.count; t++, seen++)
                    kernels.attend(y + t * H * D, scores, q + t * N, keys, values, std::max(Index(0), seen - window),
                                   seen, D, c.scale);
        });
    }
};

// How a pass of M tokens cuts its work space
struct Room {
    Room(const Model& model, const Kernels& kernels, Index M, bool wide, Index workers, Index context) {
        const npgpt_config& c = model.config;
        const Index C = c.n_embd, D = c.head_size, F = c.n_inner;
        heads = c.n_head * D, N = heads + 2 * c.n_kv_head * D, G = c.gated ? 2 * F : F;
        const Index widest = std::max({C, F, heads});
        const Index strip = (STRIP_PANELS + 1) * kernels.tile_n * round_up(K_BLOCK, 32);
        row = round_up(widest + widest / 32 * Index(sizeof(Int8Block) / 4), 32);
        const Index space = wide ? std::max(strip, kernels.attention_scratch(ATTENTION_KEYS, D)) : context;
        each = row + round_up(space, 32);
        panels = round_up(M, kernels.tile_m) * widest;
        const Index extra = (c.gated ? F : 0) + (c.rope_theta ? D : 0);
        floats = size_t(M * (2 * C + N + G + heads + extra) + panels + workers * each);
    }
    Index heads, N, G, row, each, panels;
    size_t floats;
};

}  // namespace

void Workspace::reserve(const Model& model, Index context) {
    const int workers = num_threads();
    const Kernels& kernels = *model.kernels.load();
    const Index most = std::min(CHUNK, context);
    const Room few(model, kernels, std::min(WIDE - 1, most), false, workers, context);
    const Room many(model, kernels, most, most >= WIDE, workers, context);
    floats.room(std::max(few.floats, many.floats));
    lanes.reserve(workers);
}

void forward(const Model& model, Workspace& work, const Piece* pieces, Index count, float* logits, bool every,
             float* hidden) {
    const npgpt_config& c = model.config;
    const Index C = c.n_embd, D = c.head_size;
    Index M = 0, context = 0;
    for (Index i = 0; i < count; i++) M += pieces[i].count, context = std::max(context, pieces[i].cache.context);
    const Kernels& kernels = *model.kernels.load();
    const std::shared_ptr<const Layers> layers = model.layers();
    const bool wide = count == 1 && M >= WIDE;
    const Index threads = num_threads();
    const Room all(model, kernels, M, wide, threads, context);
    const Index N = all.N, G = all.G, heads = all.heads;
    const Index multiply_adds = M * (c.n_layer * (N + heads + G + c.n_inner) + c.vocab_size) * C;
    const Index most = std::clamp(multiply_adds / THREAD_WORK, Index(1), threads);
    const bool paced = M == 1 && most > 1 && multiply_adds < PACED_WORK;
    const int workers = !paced || work.pace.together() ? int(most) : 1;
    float* x = work.floats.room(all.floats);
    float *a = x + M * C, *qkv = a + M * C, *h = qkv + M * N, *y = h + M * G;
    float *scratch = y + M * heads, *packed = scratch + workers * all.each;
    float *turns = packed + all.panels, *gate = turns + (c.rope_theta ? M * D : 0);
    const Activation gelu = c.exact_gelu ? kernels.erf_gelu_forward : kernels.gelu_forward;
    Index rows = M;  // whose logits are asked for
    Linear head;
    head.add(model.head, nullptr);
    const float* last = x;
    if (!every && count == 1) last = x + (M - 1) * C, rows = 1;

    walk_together(work.lanes, workers, [&](Team& team) {
        const Pass pass{model, kernels, team, M, wide, workers, a, packed, gate, turns, scratch, all.each, all.row};
        pass.embed(x, pieces, count);
        for (Index layer = 0; layer < c.n_layer; layer++) {
            const Layer& p = layers->layers[size_t(layer)];
            pass.attention(y, qkv, x, p.c_attn, c.post_norm ? nullptr : &p.ln_1, pieces, count, layer);
            pass.linear(x, y, p.attn_proj, M, true);  // x += attention
            if (c.gated) {
                pass.linear(h, x, p.c_fc, M, false, &p.ln_2);
                pass.linear(x, h, p.mlp_proj, M, true, nullptr, nullptr, true);  // x += mlp
            } else if (!c.post_norm) {
                pass.linear(h, x, p.c_fc, M, false, &p.ln_2, gelu);
                pass.linear(x, h, p.mlp_proj, M, true);  // x += mlp
            } else {
                pass.norm(a, x, p.ln_1, M);
                pass.linear(h, a, p.c_fc, M, false, nullptr, gelu);
                pass.linear(a, h, p.mlp_proj, M, true);
                pass.norm(x, a, p.ln_2, M);
            }
        }
        const Norm* ln_f = c.post_norm ? nullptr : &model.ln_f;
        if (hidden && ln_f) pass.norm(hidden, x, *ln_f, M);
        if (logits) pass.linear(logits, last, head, rows, false, ln_f);
    });
    if (paced) work.pace.done();
    if (hidden && c.post_norm) std::copy_n(x, M * C, hidden);
}

}  // namespace npgpt
