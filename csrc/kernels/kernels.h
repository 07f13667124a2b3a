// The contract of the arithmetic kernels: one table of function pointers, filled once per instruction set.
//
// A kernel is a pure function of its arguments: raw pointers and sizes, no allocation, no threads, no I/O, no
// exceptions. Each works on a range that the caller chose, and its result for an element never depends on how
// the ranges were cut: that is what makes results the same on any number of threads.
//
// Dimensions: B batch, T time, C channels, V vocabulary, H heads, D = C / H; M N K in matmul only. Arrays are
// dense and row-major unless a stride is given; strides count floats. Argument order: outputs, inputs,
// parameters, sizes, scalars. The NumPy reference of every op, with formulas and sources, is npgpt/engine/ops.py.
#pragma once
#include <cstddef>
#include <cstdint>

namespace npgpt {

using Index = std::ptrdiff_t;

static inline Index round_up(Index n, Index to) { return (n + to - 1) / to * to; }

// What is done to a matmul's result on its way to memory. Null pointers mean "not this".
struct Epilogue {
    const float* bias = nullptr;       // (N): added to each row
    const float* residual = nullptr;   // (M,N) with stride ldc: added
    float* gelu_input = nullptr;       // (M,N) with stride ldc: receives h; the result becomes gelu(h)
    const float* gelu_slope = nullptr; // (M,N) with stride ldc: the result is multiplied by gelu'(of this),
    float* gelu = nullptr;             // and this (M,N), given with it, receives gelu(of it)
};

struct AdamW {
    float lr, beta1, beta2, eps, decay;         // decay = lr * weight_decay
    float correction1, sqrt_correction2;        // 1 - beta1^step, sqrt(1 - beta2^step)
    float grad_scale;                           // clipping
};

// How the numbers of a weight matrix lie in memory: (N,K), row after row, so that an output is the product of a row with x,
// as plain numbers or in ggml's blocks of 32 or 256 (blocks.inl); COLUMNS: float32 (ceil(N / strip), K, strip).
enum WeightType { F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, COLUMNS };

struct Matrix {
    const void* data;
    WeightType type;
    Index N, K;       // outputs, inputs
    Index strip = 0;  // of COLUMNS: N, as the engine has its linear layers; or STRIP, which is read faster
};
constexpr Index STRIP = 32;  // a multiple of every tile_n

// Of COLUMNS: weight (k,j); side by side from there on lie w.strip - j % w.strip columns
static inline const float* column(const Matrix& w, Index k, Index j) {
    const Index at = j % w.strip;
    return static_cast<const float*>(w.data) + (j - at) * w.K + k * w.strip + at;
}

// Numbers of a block, of which rows have a whole count, and its bytes; in WeightType's order
struct BlockSize {
    int16_t length, bytes;
};
constexpr BlockSize BLOCK_SIZES[] = {{1, 4},     {1, 2},   {1, 2},     {32, 34},   {32, 18},   {32, 20},
                                     {32, 22},   {32, 24}, {256, 84},  {256, 110}, {256, 144}, {256, 176},
                                     {256, 210}, {32, 18}, {256, 136}, {1, 4}};
static inline Index block_length(WeightType type) { return BLOCK_SIZES[type].length; }  // 1: plain numbers

// Bytes of K weights side by side, a multiple of block_length
static inline Index row_bytes(WeightType type, Index K) {
    return K / BLOCK_SIZES[type].length * BLOCK_SIZES[type].bytes;
}

// What the numbers of IQ4_NL and IQ4_XS stand for
alignas(16) constexpr int8_t NONLINEAR[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// 32 numbers of x, rounded: scale * q, as Q8_0 has them
struct Int8Block {
    float scale;
    float sum;             // scale times the sum of q: what a weight's minimum is multiplied by
    int32_t minus_8_sums;  // -8 times the sum of q: what weights stored as q + 8 count too much
    int16_t sums[2];       // of the first sixteen q and of the last
    int8_t q[32];
};

struct Kernels {
    const char* name;
    int tile_m, tile_n;  // the matmul tile: rows of A and columns of B that one panel holds

    // ---- matmul: C = A B in blocks of packed panels (the driver is parallel/matmul.cpp)
    // a (M,K) by strides -> the first K of panels (ceil(M / tile_m), depth, tile_m)
    void (*pack_a)(float* panels, const float* a, Index row_stride, Index k_stride, Index M, Index K, Index depth);
    // b (K,N) by strides -> the first K of panels (ceil(N / tile_n), depth, tile_n), columns past N zero
    void (*pack_b)(float* panels, const float* b, Index k_stride, Index column_stride, Index K, Index N, Index depth);
    // c (M,N) with stride ldc = or += a b. b is packed, its panels (K, tile_n) follow each other. a is packed as well
    // (a_row_stride 0), or lies as a matrix with rows of stride a_row_stride. epilogue may be null; its pointers belong to
    // c's first element.
    void (*matmul_block)(float* c, Index ldc, const float* a, Index a_row_stride, const float* b_panels, Index M,
                         Index N, Index K, bool accumulate, const Epilogue* epilogue);

    // ---- attention of one head: q, k, v are its columns of a row of qkv, `stride` floats from one time to the next
    Index (*attention_scratch)(Index T, Index D);  // floats of work space that either direction needs
    // out (T,D) with stride out_stride; lse (T); first_key (T) or null
    void (*attention_forward)(float* out, float* lse, float* scratch, const float* q, const float* k, const float* v,
                              const int32_t* first_key, Index T, Index D, Index stride, Index out_stride, float scale);
    // dk and dv are overwritten, or, with `add`, added to: by the further heads of queries that share them
    void (*attention_backward)(float* dq, float* dk, float* dv, float* scratch, const float* dout, const float* q,
                               const float* k, const float* v, const float* out, const float* lse,
                               const int32_t* first_key, Index T, Index D, Index stride, Index out_stride, float scale,
                               bool add);

    // ---- decoding: few rows of x meet every weight once, so that memory is what limits
    // Plain types: y (M,count) with stride ldy = or += x (M,K) with stride ldx, times outputs [first, first + count) of w;
    // then bias (of output 0). A row's result depends neither on the other rows nor on the range.
    void (*matvec)(float* y, Index ldy, const float* x, Index ldx, const Matrix& w, Index first, Index count, Index M,
                   bool add, const float* bias);
    // The same for types of blocks, with x in blocks (K/32,M); M is at most 128. Each product of two blocks
    // is an exact integer, and these are scaled and added in order, so that a result is the same to the bit in any company.
    void (*matvec_int8)(float* y, Index ldy, const Int8Block* x, const Matrix& w, Index first, Index count, Index M,
                        bool add, const float* bias);
    // blocks (K/32,M), of which this writes those of `count` rows from `first` on, of x (count,K)
    void (*round_int8)(Int8Block* blocks, const float* x, Index first, Index count, Index M, Index K);
    // y (count,kn) = rows [first, first + count) of w, columns [k, k + kn), multiples of 32 for block types; not COLUMNS
    void (*unpack_rows)(float* y, const Matrix& w, Index first, Index count, Index k, Index kn);
    // out (D) of one query against keys [first, keys) of k, v (keys,D); scores (keys) is work space
    void (*attend)(float* out, float* scores, const float* q, const float* k, const float* v, Index first, Index keys,
                   Index D, float scale);
    // The same for many queries, the last keys of k being their own: q (queries,D) with its stride, out likewise. A query
    // sees `window` keys, itself included. The scratch of attention_scratch(96, D) will do.
    void (*attend_block)(float* out, Index out_stride, float* scratch, const float* q, Index stride, const float* k,
                         const float* v, Index queries, Index keys, Index window, Index D, float scale);

    // ---- rows: each (rows,C)
    void (*layernorm_forward)(float* y, float* mean, float* rstd, const float* x, const float* w, const float* b,
                              Index rows, Index C, float eps);
    void (*layernorm_apply)(float* y, const float* x, const float* mean, const float* rstd, const float* w,
                            const float* b, Index rows, Index C);
    // dw, db (C) are overwritten with the sums over these rows (db may be null); residual may be null; dx may be residual
    void (*layernorm_backward)(float* dx, float* dw, float* db, const float* dy, const float* x, const float* mean,
                               const float* rstd, const float* w, const float* residual, Index rows, Index C);
    void (*rmsnorm_forward)(float* y, float* rstd, const float* x, const float* w, Index rows, Index C, float eps);
    void (*rmsnorm_apply)(float* y, const float* x, const float* rstd, const float* w, Index rows, Index C);
    // dw (C) is overwritten with the sum over these rows; residual may be null; dx may be residual
    void (*rmsnorm_backward)(float* dx, float* dw, const float* dy, const float* x, const float* rstd, const float* w,
                             const float* residual, Index rows, Index C);
    void (*softmax_forward)(float* y, const float* x, Index rows, Index N);
    void (*softmax_backward)(float* dx, const float* dy, const float* y, Index rows, Index N);
    // logits (rows,V) become dlogits = (softmax - one-hot) * grad_scale, rows with a target below 0 become 0;
    // losses (rows). With a grad_scale of 0 the losses alone are made, and the logits are lost
    void (*cross_entropy)(float* logits, float* losses, const int32_t* targets, Index rows, Index V, float grad_scale);

    // ---- elements
    void (*gelu_forward)(float* y, const float* x, Index n);
    void (*gelu_backward)(float* dx, const float* dy, const float* x, Index n);
    void (*erf_gelu_forward)(float* y, const float* x, Index n);
    void (*erf_gelu_backward)(float* dx, const float* dy, const float* x, Index n);
    // y (rows,F) = u sigmoid(u) v, where a row of h (rows,2F) is u, then v
    void (*swiglu_forward)(float* y, const float* h, Index rows, Index F);
    void (*swiglu_backward)(float* dh, const float* dy, const float* h, Index rows, Index F);
    // x (heads,2*half): the halves of a head turned by angles of which cosine and sine (half) are given; back if
    // direction is -1, not 1
    void (*rotate)(float* x, Index heads, Index half, const float* cosine, const float* sine, float direction);
    void (*add)(float* y, const float* x, Index n);                       // y += x
    void (*sum)(float* y, const float* a, const float* b, Index n);       // y = a + b
    // db (n) += the sum over rows of dy (rows,n) with stride ld: in blocks of 64 rows, in order
    void (*sum_rows)(float* db, const float* dy, Index ld, Index rows, Index n);
    // words (4) of Philox 4x32-10 for counter (4) and key (2)
    void (*philox)(uint32_t* words, const uint32_t* counter, const uint32_t* key);
    // y = x * mask for elements [begin, end) of one sample; key = seed, step, layer, place (ops.py, philox4x32)
    void (*dropout)(float* y, const float* x, const uint32_t* key, uint32_t sample, uint32_t threshold, float scale,
                    Index begin, Index end);
    double (*square_sum)(const float* g, Index n);
    // p, g, m, v (n): one update in place, g zeroed
    void (*adamw)(float* p, float* g, float* m, float* v, Index n, const AdamW& settings);

    // ---- the machine's own limits, for benchmarks
    double (*probe_flops)(Index rounds, float* sink);  // returns the flops done
    float (*probe_read)(const float* x, Index n);
};

// All tables compiled in that this CPU can run, plainest first; count receives how many.
[[gnu::visibility("default")]] const Kernels* const* available_kernels(int* count);
// By name ("baseline", "avx2", ...; "auto" is the best); null if unknown or not for this CPU.
[[gnu::visibility("default")]] const Kernels* find_kernels(const char* name);

}  // namespace npgpt
