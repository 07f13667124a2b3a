// The ops of a GPT on whole arrays: each cut into pieces for the pool and given to the kernels.
//
// How the work is cut may depend on the number of threads; a sum's order never does. Sums over tokens (bias and
// layernorm gradients, the gradient norm) run in blocks of fixed size that are added in order; everything else is a sum
// inside one piece. So the same call gives the same bits on any number of threads.
//
// Knows kernels/, threads/ and memory/; knows nothing of Python, files or models. Dimensions as in kernels.h.
#pragma once
#include "../kernels/kernels.h"

namespace npgpt {

struct Muon {
    float lr, momentum, decay, grad_scale;  // decay: lr * weight_decay
    float polar[3][3];  // the polynomials of ops.py
};

const Kernels& active_kernels();
void set_active_kernels(const Kernels* kernels);

// Rows of K numbers, in parts one below the other, each with a type of its own
struct Parts {
    const Matrix* parts;
    Index count;
};

// A matrix by strides, in floats: element (i,j) lies at data[i * row + j * column]. matmul's b may be `stored` rows instead,
// which have no data: element (i,j) is number j of row i, or number i of row j where `row` is 1.
struct View {
    const float* data;
    Index row, column;
    Parts stored = {};
};

// A product a (M,K) b (K,N) of a small K that is added to another one, as if the factors of that were so much deeper
struct LowRank {
    View a, b;
    Index K;
};

// c (M,N) with stride ldc = or += a (M,K) b (K,N), += low_rank, then the epilogue
void matmul(float* c, Index ldc, View a, View b, Index M, Index N, Index K, bool accumulate,
            const Epilogue* epilogue = nullptr, const LowRank* low_rank = nullptr);
// The same on the calling thread alone, for those who are one of many already
void matmul_alone(float* c, Index ldc, View a, View b, Index M, Index N, Index K);

// y (count,K) = the numbers of w's rows first ... first + count - 1
void unpack_rows(float* y, const Matrix& w, Index first, Index count);
constexpr const char* WEIGHT_TYPES[] = {// ggml's names, in WeightType's order
                                        "f32",  "f16",  "bf16", "q8_0", "q4_0", "q4_1",   "q5_0",  "q5_1",
                                        "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs"};

void embedding_forward(float* x, const int32_t* ids, const int32_t* positions, const float* wte, const float* wpe,
                       Index rows, Index C);
void embedding_backward(float* dwte, float* dwpe, const float* dx, const int32_t* ids, const int32_t* positions,
                        Index rows, Index C);
void layernorm_forward(float* y, float* mean, float* rstd, const float* x, const float* w, const float* b, Index rows,
                       Index C, float eps);
void layernorm_apply(float* y, const float* x, const float* mean, const float* rstd, const float* w, const float* b,
                     Index rows, Index C);
void layernorm_backward(float* dx, float* dw, float* db, const float* dy, const float* x, const float* mean,
                        const float* rstd, const float* w, const float* residual, Index rows, Index C);
void rmsnorm_forward(float* y, float* rstd, const float* x, const float* w, Index rows, Index C, float eps);
void rmsnorm_apply(float* y, const float* x, const float* rstd, const float* w, Index rows, Index C);
void rmsnorm_backward(float* dx, float* dw, const float* dy, const float* x, const float* rstd, const float* w,
                      const float* residual, Index rows, Index C);
void linear_backward(float* dx, float* dw, float* db, const float* dy, const float* x, const float* w, Index M, Index N,
                     Index K);
void gelu_linear_backward(float* dh, float* dw, float* db, const float* dz, const float* h, const float* w, Index M,
                          Index N, Index K);
// The sizes of attention: H heads of queries, K of keys and of values, of D numbers each.
struct Heads {
    Index B, T, H, K, D;
    Index stride() const { return (H + 2 * K) * D; }  // of qkv
};
void attention_forward(float* out, float* lse, const float* qkv, const int32_t* first_key, const Heads& heads,
                       float scale);
void attention_backward(float* dqkv, const float* dout, const float* qkv, const float* out, const float* lse,
                        const int32_t* first_key, const Heads& heads, float scale);
void softmax_forward(float* y, const float* x, Index rows, Index N);
void softmax_backward(float* dx, const float* dy, const float* y, Index rows, Index N);
// As the kernel: logits (rows,V) become their gradient, losses (rows)
void cross_entropy(float* losses, float* logits, const int32_t* targets, Index rows, Index V, float grad_scale);
// Returns the mean loss; with dx (rows,C), it and dwte (V,C) get the gradients; shift (V) may be null
double head_cross_entropy(float* dx, float* dwte, const float* x, const float* wte, const int32_t* targets,
                          const float* shift, Index rows, Index V, Index C);
constexpr Index LOGITS = Index(13) << 19;  // floats of logits in memory at a time: 26 MB, 128 rows of GPT-2's and a few
void gelu_forward(float* y, const float* x, Index n);
void gelu_backward(float* dx, const float* dy, const float* x, Index n);
void erf_gelu_forward(float* y, const float* x, Index n);
void erf_gelu_backward(float* dx, const float* dy, const float* x, Index n);
void swiglu_forward(float* y, const float* h, Index rows, Index F);
void swiglu_backward(float* dh, const float* dy, const float* h, Index rows, Index F);
// x (rows,N), of which the first `rotated` heads of 2*half numbers turn, in place: cosine, sine (P,half), positions (rows)
void rope(float* x, const int32_t* positions, const float* cosine, const float* sine, Index rows, Index N,
          Index rotated, Index half, float direction);
void dropout(float* y, const float* x, const uint32_t* key, uint32_t first_sample, double p, Index B, Index size);
double global_norm(const float* g, Index n);
void adamw_step(float* p, float* g, float* m, float* v, Index n, Index n_decay, const AdamW& settings);
// matrices (count,4): start, rows, columns, distance of rows
void muon_step(float* p, float* g, float* m, const int64_t* matrices, Index count, const Muon& settings);

// What this machine can do at most just now, on all threads: GFLOP/s of multiply-adds, GB/s read from memory.
double peak_gflops(double seconds);
double read_bandwidth(double seconds);

}  // namespace npgpt
