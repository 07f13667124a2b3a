#include "ops.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "../memory/blocks.h"
#include "../threads/pool.h"
#include "throwing.h"

namespace npgpt {
namespace {

const Kernels* active = find_kernels("auto");

constexpr Index PIECE = 16384;    // floats a piece of elementwise work should have: 64 kB
constexpr Index SUM_ROWS = 64;    // rows summed in one go before they join the total
constexpr Index SUM_FLOATS = 4096;  // floats of the gradient norm summed in one go

// body(begin, end) over [0, n) in pieces of `size`
template <class Body>
void in_pieces(Index n, Index size, Body&& body) {
    parallel_for((n + size - 1) / size, [&](Index i, int) { body(i * size, std::min(n, (i + 1) * size)); });
}

Index rows_per_piece(Index C) { return std::max<Index>(1, PIECE / std::max<Index>(1, C)); }

// db (N) += the column sums of dy (M,N)
void sum_rows(float* db, const float* dy, Index M, Index N) {
    in_pieces(N, 64, [&](Index begin, Index end) { active->sum_rows(db + begin, dy + begin, N, M, end - begin); });
}

}  // namespace

const Kernels& active_kernels() { return *active; }
void set_active_kernels(const Kernels* kernels) { active = kernels; }

void unpack_rows(float* y, const Matrix& w, Index first, Index count) {
    in_pieces(count, rows_per_piece(w.K), [&](Index begin, Index end) {
        active->unpack_rows(y + begin * w.K, w, first + begin, end - begin, 0, w.K);
    });
}

void embedding_forward(float* x, const int32_t* ids, const int32_t* positions, const float* wte, const float* wpe,
                       Index rows, Index C) {
    in_pieces(rows, rows_per_piece(C), [&](Index begin, Index end) {
        for (Index i = begin; i < end; i++) {
            const float* row = wte + Index(ids[i]) * C;
            if (wpe)
                active->sum(x + i * C, row, wpe + Index(positions[i]) * C, C);
            else
                std::copy(row, row + C, x + i * C);
        }
    });
}

void embedding_backward(float* dwte, float* dwpe, const float* dx, const int32_t* ids, const int32_t* positions,
                        Index rows, Index C) {
    // forward: x = wte[ids] + wpe[positions]. A row of dwte may be hit by any token: pieces are channels, tokens in order.
    in_pieces(C, 32, [&](Index begin, Index end) {
        for (Index i = 0; i < rows; i++) {
            active->add(dwte + Index(ids[i]) * C + begin, dx + i * C + begin, end - begin);
            if (dwpe) active->add(dwpe + Index(positions[i]) * C + begin, dx + i * C + begin, end - begin);
        }
    });
}

void layernorm_forward(float* y, float* mean, float* rstd, const float* x, const float* w, const float* b, Index rows,
                       Index C, float eps) {
    in_pieces(rows, rows_per_piece(C), [&](Index begin, Index end) {
        active->layernorm_forward(y + begin * C, mean + begin, rstd + begin, x + begin * C, w, b, end - begin, C, eps);
    });
}

void layernorm_apply(float* y, const float* x, const float* mean, const float* rstd, const float* w, const float* b,
                     Index rows, Index C) {
    in_pieces(rows, rows_per_piece(C), [&](Index begin, Index end) {
        active->layernorm_apply(y + begin * C, x + begin * C, mean + begin, rstd + begin, w, b, end - begin, C);
    });
}

void layernorm_backward(float* dx, float* dw, float* db, const float* dy, const float* x, const float* mean,
                        const float* rstd, const float* w, const float* residual, Index rows, Index C) {
    const Index blocks = (rows + SUM_ROWS - 1) / SUM_ROWS;
    Block partial(2 * blocks * C);  // dw and db of each block of rows
    in_pieces(rows, SUM_ROWS, [&](Index begin, Index end) {
        float* dw_block = partial.data + begin / SUM_ROWS * 2 * C;
        active->layernorm_backward(dx + begin * C, dw_block, db ? dw_block + C : nullptr, dy + begin * C, x + begin * C,
                                   mean + begin, rstd + begin, w, residual ? residual + begin * C : nullptr,
                                   end - begin, C);
    });
    for (Index block = 0; block < blocks; block++) {
        active->add(dw, partial.data + block * 2 * C, C);
        if (db) active->add(db, partial.data + block * 2 * C + C, C);
    }
}

void rmsnorm_forward(float* y, float* rstd, const float* x, const float* w, Index rows, Index C, float eps) {
    in_pieces(rows, rows_per_piece(C), [&](Index begin, Index end) {
        active->rmsnorm_forward(y + begin * C, rstd + begin, x + begin * C, w, end - begin, C, eps);
    });
}

void rmsnorm_apply(float* y, const float* x, const float* rstd, const float* w, Index rows, Index C) {
    in_pieces(rows, rows_per_piece(C), [&](Index begin, Index end) {
        active->rmsnorm_apply(y + begin * C, x + begin * C, rstd + begin, w, end - begin, C);
    });
}

void rmsnorm_backward(float* dx, float* dw, const float* dy, const float* x, const float* rstd, const float* w,
                      const float* residual, Index rows, Index C) {
    const Index blocks = (rows + SUM_ROWS - 1) / SUM_ROWS;
    Block partial(blocks * C);  // dw of each block of rows
    in_pieces(rows, SUM_ROWS, [&](Index begin, Index end) {
        active->rmsnorm_backward(dx + begin * C, partial.data + begin / SUM_ROWS * C, dy + begin * C, x + begin * C,
                                 rstd + begin, w, residual ? residual + begin * C : nullptr, end - begin, C);
    });
    for (Index block = 0; block < blocks; block++) active->add(dw, partial.data + block * C, C);
}

void linear_backward(float* dx, float* dw, float* db, const float* dy, const float* x, const float* w, Index M, Index N,
                     Index K) {
    // forward: y = x w + b
    matmul(dx, K, {dy, N, 1}, {w, 1, N}, M, K, N, false);
    matmul(dw, N, {x, 1, K}, {dy, N, 1}, K, N, M, true);
    if (db) sum_rows(db, dy, M, N);
}

void gelu_linear_backward(float* dh, float* dw, float* db, const float* dz, const float* h, const float* w, Index M,
                          Index N, Index K) {
    // forward: z = gelu(h) w + b
    Block y(M * K);  // gelu(h)
    Epilogue slope;
    slope.gelu_slope = h;
    slope.gelu = y.data;
    matmul(dh, K, {dz, N, 1}, {w, 1, N}, M, K, N, false, &slope);
    matmul(dw, N, {y.data, 1, K}, {dz, N, 1}, K, N, M, true);
    if (db) sum_rows(db, dz, M, N);
}

void attention_forward(float* out, float* lse, const float* qkv, const int32_t* first_key, const Heads& heads,
                       float scale) {
    const auto [B, T, H, K, D] = heads;
    const Index stride = heads.stride(), C = H * D, space = active->attention_scratch(T, D);
    const int workers = num_threads();
    Block scratch(workers * space);
    parallel_for(
        B * H,
        [&](Index item, int worker) {
            const Index b = item / H, h = item % H, shared = H / K;
            const float* row = qkv + b * T * stride;
            const float *k = row + C + h / shared * D, *v = k + K * D;
            active->attention_forward(out + b * T * C + h * D, lse + item * T, scratch.data + worker * space,
                                      row + h * D, k, v, first_key ? first_key + b * T : nullptr, T, D, stride, C,
                                      scale);
        },
        workers);
}

void attention_backward(float* dqkv, const float* dout, const float* qkv, const float* out, const float* lse,
                        const int32_t* first_key, const Heads& heads, float scale) {
    const auto [B, T, H, K, D] = heads;
    const Index stride = heads.stride(), C = H * D, space = active->attention_scratch(T, D);
    const int workers = num_threads();
    Block scratch(workers * space);
    // A head of keys is one thread's: the heads of queries that share it add to dk and dv in their order
    parallel_for(
        B * K,
        [&](Index item, int worker) {
            const Index b = item / K, kv = item % K, shared = H / K, at_k = b * T * stride + C + kv * D;
            for (Index h = kv * shared; h < (kv + 1) * shared; h++) {
                const Index at_q = b * T * stride + h * D, at_out = b * T * C + h * D;
                active->attention_backward(dqkv + at_q, dqkv + at_k, dqkv + at_k + K * D, scratch.data + worker * space,
                                           dout + at_out, qkv + at_q, qkv + at_k, qkv + at_k + K * D, out + at_out,
                                           lse + (b * H + h) * T, first_key ? first_key + b * T : nullptr, T, D, stride,
                                           C, scale, h > kv * shared);
            }
        },
        workers);
}

void softmax_forward(float* y, const float* x, Index rows, Index N) {
    in_pieces(rows, rows_per_piece(N),
              [&](Index begin, Index end) { active->softmax_forward(y + begin * N, x + begin * N, end - begin, N); });
}

void softmax_backward(float* dx, const float* dy, const float* y, Index rows, Index N) {
    in_pieces(rows, rows_per_piece(N), [&](Index begin, Index end) {
        active->softmax_backward(dx + begin * N, dy + begin * N, y + begin * N, end - begin, N);
    });
}

void cross_entropy(float* losses, float* logits, const int32_t* targets, Index rows, Index V, float grad_scale) {
    in_pieces(rows, rows_per_piece(V), [&](Index begin, Index end) {
        active->cross_entropy(logits + begin * V, losses + begin, targets + begin, end - begin, V, grad_scale);
    });
}

double head_cross_entropy(float* dx, float* dwte, const float* x, const float* wte, const int32_t* targets,
                          const float* shift, Index rows, Index V, Index C) {
    const Index counted = std::count_if(targets, targets + rows, [](int32_t t) { return t >= 0; });
    const float grad_scale = dx ? 1.0f / std::max<Index>(1, counted) : 0;
    const Index chunks = (rows * V + LOGITS - 1) / LOGITS;
    const Index chunk = chunks ? std::min(rows, round_up((rows + chunks - 1) / chunks, 16)) : 0;
    Block losses(rows), logits(chunk * V);
    Epilogue shifted;
    shifted.bias = shift;
    for (Index row = 0; row < rows; row += chunk) {
        const Index n = std::min(chunk, rows - row);
        const float* x_row = x + row * C;
        matmul(logits.data, V, {x_row, C, 1}, {wte, 1, C}, n, V, C, false, shift ? &shifted : nullptr);
        cross_entropy(losses.data + row, logits.data, targets + row, n, V, grad_scale);
        if (!dx) continue;
        // forward: logits = x wte^T
        matmul(dx + row * C, C, {logits.data, V, 1}, {wte, C, 1}, n, C, V, false);
        matmul(dwte, C, {logits.data, 1, V}, {x_row, C, 1}, V, C, n, true);
    }
    double total = 0;
    for (Index i = 0; i < rows; i++) total += losses.data[i];
    return total / std::max<Index>(1, counted);
}

// y = op(x...), element by element
template <class Op, class... Arrays>
static void elements(Op op, float* y, Index n, Arrays... x) {
    in_pieces(n, PIECE, [&](Index begin, Index end) { op(y + begin, (x + begin)..., end - begin); });
}

void gelu_forward(float* y, const float* x, Index n) { elements(active->gelu_forward, y, n, x); }
void gelu_backward(float* dx, const float* dy, const float* x, Index n) {
    elements(active->gelu_backward, dx, n, dy, x);
}
void erf_gelu_forward(float* y, const float* x, Index n) { elements(active->erf_gelu_forward, y, n, x); }
void erf_gelu_backward(float* dx, const float* dy, const float* x, Index n) {
    elements(active->erf_gelu_backward, dx, n, dy, x);
}

void swiglu_forward(float* y, const float* h, Index rows, Index F) {
    in_pieces(rows, rows_per_piece(F), [&](Index begin, Index end) {
        active->swiglu_forward(y + begin * F, h + begin * 2 * F, end - begin, F);
    });
}

void swiglu_backward(float* dh, const float* dy, const float* h, Index rows, Index F) {
    in_pieces(rows, rows_per_piece(F), [&](Index begin, Index end) {
        active->swiglu_backward(dh + begin * 2 * F, dy + begin * F, h + begin * 2 * F, end - begin, F);
    });
}

void rope(float* x, const int32_t* positions, const float* cosine, const float* sine, Index rows, Index N,
          Index rotated, Index half, float direction) {
    in_pieces(rows, rows_per_piece(N), [&](Index begin, Index end) {
        for (Index i = begin; i < end; i++) {
            const Index angles = Index(positions[i]) * half;
            active->rotate(x + i * N, rotated, half, cosine + angles, sine + angles, direction);
        }
    });
}

void dropout(float* y, const float* x, const uint32_t* key, uint32_t first_sample, double p, Index B, Index size) {
    const uint32_t threshold = uint32_t(p * 4294967296.0);
    const float scale = float(1 / (1 - p));
    const Index pieces = (size + PIECE - 1) / PIECE;
    parallel_for(B * pieces, [&](Index item, int) {
        const Index sample = item / pieces, begin = item % pieces * PIECE;
        active->dropout(y + sample * size, x + sample * size, key, first_sample + uint32_t(sample), threshold, scale,
                        begin, std::min(size, begin + PIECE));
    });
}

double global_norm(const float* g, Index n) {
    std::vector<double> partial((n + SUM_FLOATS - 1) / SUM_FLOATS);
    // 16 blocks to a piece: a block alone is too little work to hand out
    in_pieces(n, 16 * SUM_FLOATS, [&](Index begin, Index end) {
        for (Index i = begin; i < end; i += SUM_FLOATS)
            partial[i / SUM_FLOATS] = active->square_sum(g + i, std::min(SUM_FLOATS, end - i));
    });
    double total = 0;
    for (double part : partial) total += part;
    return std::sqrt(total);
}

void adamw_step(float* p, float* g, float* m, float* v, Index n, Index n_decay, const AdamW& settings) {
    AdamW plain = settings;
    plain.decay = 0;
    auto update = [&](Index begin, Index end, const AdamW& s) {
        if (begin < end) active->adamw(p + begin, g + begin, m + begin, v + begin, end - begin, s);
    };
    in_pieces(n, 4 * PIECE, [&](Index begin, Index end) {
        const Index border = std::clamp(n_decay, begin, end);
        update(begin, border, settings);
        update(border, end, plain);
    });
}

// factor (R,R) = a I + b gram + c gram^2
static void polynomial(float* factor, const float* gram, Index R, const float (&polar)[3]) {
    const float a = polar[0], b = polar[1], c = polar[2];
    matmul_alone(factor, R, {gram, R, 1}, {gram, R, 1}, R, R, R);
    for (Index k = 0; k < R * R; k++) factor[k] = b * gram[k] + c * factor[k];
    for (Index k = 0; k < R; k++) factor[k * R + k] += a;
}

// x (R,S) with R <= S becomes near-orthogonal: x = (a + b g + c g^2) x, g = x x^T, for each polynomial. y (R,S) is scratch.
static void orthogonalise(float*& x, float*& y, Index R, Index S, const float (*polar)[3]) {
    Block gram(R * R), factor(R * R), product(R * R), next(R * R);
    float *g = gram.data, *f = factor.data, *all = product.data, *spare = next.data;
    const bool wide = S >= 2 * R;  // then the factors are gathered in (R,R), and x is multiplied once
    for (int i = 0; i < 3; i++) {
        if (i == 0 || !wide) matmul_alone(g, R, {x, S, 1}, {x, 1, S}, R, R, S);
        polynomial(f, g, R, polar[i]);
        if (!wide) {
            matmul_alone(y, S, {f, R, 1}, {x, S, 1}, R, S, R);
            std::swap(x, y);
            continue;
        }
        if (i < 2) {  // the gram matrix of f x: all of these are symmetric and commute
            matmul_alone(spare, R, {f, R, 1}, {g, R, 1}, R, R, R);
            matmul_alone(g, R, {f, R, 1}, {spare, R, 1}, R, R, R);
        }
        if (i == 0) {
            std::swap(all, f);
        } else {
            matmul_alone(spare, R, {f, R, 1}, {all, R, 1}, R, R, R);
            std::swap(all, spare);
        }
    }
    if (wide) {
        matmul_alone(y, S, {all, R, 1}, {x, S, 1}, R, S, R);
        std::swap(x, y);
    }
}

void muon_step(float* p, float* g, float* m, const int64_t* matrices, Index count, const Muon& s) {
    parallel_for_throwing(count, [&](Index item, int) {  // a matrix is one thread's: there are many
        const int64_t* at = matrices + item * 4;
        const Index start = at[0], rows = at[1], columns = at[2], distance = at[3];
        const bool flip = rows > columns;
        const Index R = flip ? columns : rows, S = flip ? rows : columns;
        const Index row = flip ? 1 : S, column = flip ? S : 1;  // strides of x and y, seen as (rows,columns)
        Block x_block(R * S), y_block(R * S);
        float *x = x_block.data, *y = y_block.data;
        double squares = 0;
        for (Index i = 0; i < rows; i++)
            for (Index j = 0; j < columns; j++) {
                const Index k = start + i * distance + j;
                const float d = g[k] * s.grad_scale;
                m[k] += (1 - s.momentum) * (d - m[k]);
                const float u = d + s.momentum * (m[k] - d);
                g[k] = 0;
                x[i * row + j * column] = u;
                squares += double(u) * u;
            }
        const float scale = 1 / (1.02f * float(std::sqrt(squares)) + 1e-7f);
        for (Index k = 0; k < R * S; k++) x[k] *= scale;
        orthogonalise(x, y, R, S, s.polar);
        const float rate = s.lr * std::sqrt(std::max(1.0f, float(columns) / rows));
        for (Index i = 0; i < rows; i++)
            for (Index j = 0; j < columns; j++) {
                float& w = p[start + i * distance + j];
                w = w * (1 - s.decay) - rate * x[i * row + j * column];
            }
    });
}

}  // namespace npgpt
