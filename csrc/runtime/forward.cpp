#include "forward.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "../threads/pool.h"

namespace npgpt {

Buffer::~Buffer() { std::free(data); }

float* Buffer::room(size_t floats) {
    if (floats > size) {
        void* block = nullptr;
        if (floats > size_t(-1) / 8 || posix_memalign(&block, 64, floats * sizeof(float))) throw std::bad_alloc();
        std::free(data);
        data = static_cast<float*>(block);
        size = floats;
    }
    return data;
}

namespace {

constexpr Index K_BLOCK = 320;         // rows of a packed panel at most: (K,16) stays in L1
constexpr Index STRIP_PANELS = 4;      // panels of weights that a thread packs at a time
constexpr Index MIN_WORK = 1 << 15;    // multiply-adds of an op: below this a second thread does not pay
constexpr Index MIN_PASS = 2 << 20;    // and of a pass, whose every op would wait for the others' cores
constexpr Index ATTENTION_KEYS = 96;   // a block of keys (kernels.h, attend_block)

Index round_up(Index n, Index to) { return (n + to - 1) / to * to; }

struct Pass {
    const Model& model;
    const Kernels& kernels;
    const Index M;     // tokens
    const bool wide;
    const int workers;
    float *packed, *scratch;  // x in panels or blocks; (workers, each) of work space
    Index each;

    template <class Body>
    void run(Index count, Index work, Body&& body) const {
        parallel_for(count, body, work < MIN_WORK ? 1 : workers);
    }

    static Index k_block(Index K) {  // equal parts, multiples of 32: a function of K alone
        const Index blocks = (K + K_BLOCK - 1) / K_BLOCK;
        return blocks <= 1 ? K : round_up((K + blocks - 1) / blocks, 32);
    }

    // y (rows,N) = or += x (rows,K) w, + bias, GELU
    void linear(float* y, const float* x, const Linear& w, Index rows, bool add, bool gelu) const {
        if (w.weight.type == Q8_0 || w.weight.type == Q4_0)
            for (Index row = 0; row < rows; row += CHUNK)
                integers(y + row * w.weight.N, x + row * w.weight.K, w, std::min(CHUNK, rows - row), add, gelu);
        else if (wide && rows == M)
            many(y, x, w, add, gelu);
        else
            few(y, x, w, rows, add, gelu);
    }

    // The same for weights in blocks, at most CHUNK rows: x is rounded to such blocks too.
    void integers(float* y, const float* x, const Linear& linear, Index rows, bool add, bool gelu) const {
        const Matrix& w = linear.weight;
        Int8Block* blocks = reinterpret_cast<Int8Block*>(packed);
        run(rows, rows * w.K * 8,
            [&](Index row, int) { kernels.round_int8(blocks, x + row * w.K, row, 1, rows, w.K); });
        const Index part = part_of(w, rows);
        run((w.N + part - 1) / part, rows * w.N * w.K / 4, [&](Index item, int) {
            const Index first = item * part, count = std::min(part, w.N - first);
            kernels.matvec_int8(y + first, w.N, blocks, w, first, count, rows, add, linear.bias);
            if (gelu)
                for (Index m = 0; m < rows; m++) kernels.gelu_forward(y + m * w.N + first, y + m * w.N + first, count);
        });
    }

    // Outputs that a thread makes at a time
    Index part_of(const Matrix& w, Index rows) const {
        if (rows * w.N * w.K < MIN_WORK) return w.N;
        // Columns lie in short pieces of each row of memory: the longer those, the faster it is read.
        if (w.type == COLUMNS && rows == 1) return std::min(Index(1536), round_up((w.N + workers - 1) / workers, 16));
        return std::min(Index(256), std::max(Index(16), round_up(w.N / (4 * workers), 16)));
    }

    void few(float* y, const float* x, const Linear& linear, Index rows, bool add, bool gelu) const {
        const Matrix& w = linear.weight;
        const Index part = part_of(w, rows);
        run((w.N + part - 1) / part, rows * w.N * w.K, [&](Index item, int) {
            const Index first = item * part;
            kernels.matvec(y + first, w.N, x, w.K, w, first, std::min(part, w.N - first), rows, add, linear.bias, gelu);
        });
    }

    // The same with the packed product of the engine: each thread unpacks strips of w into its cache for all tokens.
    void many(float* y, const float* x, const Linear& linear, bool add, bool gelu) const {
        const Matrix& w = linear.weight;
        const Index MR = kernels.tile_m, NR = kernels.tile_n, K = w.K, N = w.N, kc = k_block(K);
        const Index padded = round_up(M, MR), k_blocks = (K + kc - 1) / kc, panels = padded / MR;
        run(k_blocks * panels, M * K * 8, [&](Index item, int) {
            const Index k = item / panels * kc, row = item % panels * MR, kn = std::min(kc, K - k);
            kernels.pack_a(packed + k * padded + row * kn, x + row * K + k, K, 1, std::min(MR, M - row), kn);
        });
        const Index columns = STRIP_PANELS * NR;
        run((N + columns - 1) / columns, M * N * K, [&](Index item, int worker) {
            float *strip = scratch + worker * each, *rows = strip + columns * kc;
            const Index first = item * columns, count = std::min(columns, N - first);
            for (Index k = 0; k < K; k += kc) {
                const Index kn = std::min(kc, K - k);
                if (w.type == COLUMNS)
                    kernels.pack_b(strip, static_cast<const float*>(w.data) + k * N + first, N, 1, kn, count);
                else
                    for (Index j = 0; j < count; j += NR) {
                        kernels.unpack_rows(rows, w, first + j, std::min(NR, count - j), k, kn);
                        kernels.pack_b(strip + j * kn, rows, 1, kn, kn, std::min(NR, count - j));
                    }
                Epilogue end;
                end.bias = linear.bias && k + kn == K ? linear.bias + first : nullptr;
                kernels.matmul_block(y + first, N, packed + k * padded, 0, strip, M, count, kn, add || k > 0, &end);
            }
            if (gelu)
                for (Index m = 0; m < M; m++) kernels.gelu_forward(y + m * N + first, y + m * N + first, count);
        });
    }

    // h (M,4C) = gelu(x c_fc)
    void inner(float* h, const float* x, const Linear& c_fc) const {
        linear(h, x, c_fc, M, false, !model.config.exact_gelu);
        if (!model.config.exact_gelu) return;
        const Index N = c_fc.weight.N;
        run(M, M * N * 8, [&](Index row, int) { kernels.erf_gelu_forward(h + row * N, h + row * N, N); });
    }

    void norm(float* y, const float* x, const Norm& ln, Index rows) const {
        const Index C = model.config.n_embd;
        constexpr Index PART = 8;
        run((rows + PART - 1) / PART, rows * C * 4, [&](Index item, int) {
            float mean[PART], rstd[PART];
            const Index row = item * PART;
            kernels.layernorm_forward(y + row * C, mean, rstd, x + row * C, ln.weight, ln.bias,
                                      std::min(PART, rows - row), C, model.config.layer_norm_epsilon);
        });
    }

    // out (M,C) of qkv (M,3C), whose keys and values go into the caches
    void attention(float* out, const float* qkv, const Piece* pieces, Index count, Index layer) const {
        const npgpt_config& c = model.config;
        const Index C = c.n_embd, H = c.n_head, D = C / H;
        const Index window = c.window && layer % 2 ? c.window : Index(1) << 40;
        Index work = 0;
        for (Index i = 0; i < count; i++) work += pieces[i].count * (pieces[i].position + pieces[i].count) * 2 * C;
        const Index per_piece = wide ? 1 : pieces[0].count;  // items of a head
        run(count * H * per_piece, work, [&](Index item, int worker) {
            const Index head = item % H, row = item / H;
            const Piece& piece = pieces[wide || count == 1 ? 0 : row];
            const Index at = (layer * H + head) * piece.cache.context * D;
            float *keys = piece.cache.keys + at, *values = piece.cache.values + at;
            const float* q = qkv + (wide ? 0 : row * 3 * C) + head * D;
            if (wide) {
                for (Index t = 0; t < piece.count; t++) {
                    std::memcpy(keys + (piece.position + t) * D, q + t * 3 * C + C, size_t(D) * sizeof(float));
                    std::memcpy(values + (piece.position + t) * D, q + t * 3 * C + 2 * C, size_t(D) * sizeof(float));
                }
                kernels.attend_block(out + head * D, C, scratch + worker * each, q, 3 * C, keys, values, piece.count,
                                     piece.position + piece.count, window, D, c.scale);
                return;
            }
            // The keys of earlier tokens of this piece are items of their own: those are written beforehand.
            const Index seen = piece.position + (count == 1 ? row : 0) + 1;
            kernels.attend(out + row * C + head * D, scratch + worker * each, q, keys, values,
                           std::max(Index(0), seen - window), seen, D, c.scale);
        });
    }

    void store_keys(const float* qkv, const Piece* pieces, Index count, Index layer) const {
        const Index C = model.config.n_embd, H = model.config.n_head, D = C / H;
        for (Index i = 0; i < count; i++)
            for (Index t = 0; t < pieces[i].count; t++, qkv += 3 * C)
                for (Index h = 0; h < H; h++) {
                    const Cache& cache = pieces[i].cache;
                    const Index at = ((layer * H + h) * cache.context + pieces[i].position + t) * D;
                    std::memcpy(cache.keys + at, qkv + C + h * D, size_t(D) * sizeof(float));
                    std::memcpy(cache.values + at, qkv + 2 * C + h * D, size_t(D) * sizeof(float));
                }
    }
};

}  // namespace

void forward(const Model& model, Buffer& work, const Piece* pieces, Index count, float* logits, bool every,
             float* hidden) {
    const npgpt_config& c = model.config;
    const Index C = c.n_embd, D = C / c.n_head;
    Index M = 0, context = 0;
    for (Index i = 0; i < count; i++) M += pieces[i].count, context = std::max(context, pieces[i].cache.context);
    const Kernels& kernels = *model.kernels.load();
    const int workers = M * (12 * c.n_layer * C + c.vocab_size) * C < MIN_PASS ? 1 : num_threads();
    Pass pass{model, kernels, M, count == 1 && M >= WIDE, workers, nullptr, nullptr, 0};
    const Index strip = (STRIP_PANELS + 1) * kernels.tile_n * round_up(K_BLOCK, 32);
    pass.each = round_up(pass.wide ? std::max(strip, kernels.attention_scratch(ATTENTION_KEYS, D)) : context, 32);
    const Index padded = round_up(M, kernels.tile_m);
    float* x = work.room(size_t(M * 10 * C + padded * 4 * C + pass.workers * pass.each));
    float *a = x + M * C, *qkv = a + M * C, *h = qkv + M * 3 * C, *y = h + M * 4 * C;
    pass.scratch = y + M * C;
    pass.packed = pass.scratch + pass.workers * pass.each;

    for (Index i = 0, row = 0; i < count; i++)
        for (Index t = 0; t < pieces[i].count; t++, row++) {
            kernels.unpack_rows(x + row * C, model.wte, pieces[i].ids[t], 1, 0, C);
            kernels.unpack_rows(a, model.wpe, pieces[i].position + t, 1, 0, C);
            kernels.add(x + row * C, a, C);
        }
    for (Index layer = 0; layer < c.n_layer; layer++) {
        const Layer& p = model.layers[size_t(layer)];
        if (!c.post_norm) pass.norm(a, x, p.ln_1, M);
        pass.linear(qkv, c.post_norm ? x : a, p.c_attn, M, false, false);
        if (!pass.wide) pass.store_keys(qkv, pieces, count, layer);
        pass.attention(y, qkv, pieces, count, layer);
        pass.linear(x, y, p.attn_proj, M, true, false);  // x += attention
        if (!c.post_norm) {
            pass.norm(a, x, p.ln_2, M);
            pass.inner(h, a, p.c_fc);
            pass.linear(x, h, p.mlp_proj, M, true, false);  // x += mlp
        } else {
            pass.norm(a, x, p.ln_1, M);
            pass.inner(h, a, p.c_fc);
            pass.linear(a, h, p.mlp_proj, M, true, false);
            pass.norm(x, a, p.ln_2, M);
        }
    }
    if (hidden) {
        if (c.post_norm)
            std::copy_n(x, M * C, hidden);
        else
            pass.norm(hidden, x, model.ln_f, M);
    }
    if (!logits) return;
    Index rows = M;
    if (!every && count == 1 && M > 1) {  // the last token's alone
        std::memmove(x, x + (M - 1) * C, size_t(C) * sizeof(float));
        rows = 1;
    }
    if (!c.post_norm) pass.norm(a, x, model.ln_f, rows);
    const Linear head{model.head, nullptr};
    const float* read = c.post_norm ? x : a;
    pass.linear(logits, read, head, rows, false, false);
}

}  // namespace npgpt
