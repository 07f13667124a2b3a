// A GPT-2 that learns: weights, forward and backward pass, as npgpt/engine/model.py has them, of the same ops.
//
// B rows of T tokens, C = n_embd, V = vocab_size, L = n_layer, H = n_head.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "../memory/blocks.h"
#include "windows.h"

namespace npgpt {

// An array of the block store, which moves
class Floats {
  public:
    Floats() = default;
    explicit Floats(Index n) : data(take_block(size_t(n))), size(n) {}
    Floats(Floats&& other) noexcept : data(other.data), size(other.size) { other.data = nullptr; }
    Floats& operator=(Floats&& other) noexcept;
    ~Floats() {
        if (data) give_block(data, size_t(size));
    }
    float* data = nullptr;
    Index size = 0;
};

struct Shape {
    Index n_layer, n_head, n_embd, block_size, vocab_size;
    double dropout;
    uint32_t seed;  // of the weights and of dropout
};

struct Parameter {
    std::string name;     // GPT-2's
    Index rows, columns;  // rows 1: a vector
    Index start;          // in params and grads
};

class Gpt2 {
  public:
    explicit Gpt2(const Shape& shape);  // params are not set
    void draw();  // N(0, 0.02), residual projections N(0, 0.02 / sqrt(2 L)); the same bits as NumPy's

    // Adds to grads, and returns the mean loss of the targets that count. step: of dropout's masks, from 1
    double learn(const Batch& batch, Index step);
    double loss(const Batch& batch);  // without dropout

    const Shape shape;
    std::vector<Parameter> parameters;  // matrices first: those decay
    Index size = 0, n_decay = 0;
    Floats params, grads;  // (size)

    static constexpr float EPSILON = 1e-5f;  // of layernorms

  private:
    struct Place {  // of a linear layer or a norm: its weight and bias
        Index weight, bias;
    };
    struct Layer {
        Place ln_1, c_attn, attn_proj, ln_2, c_fc, mlp_proj;
    };
    struct Kept {  // of a layer, for its backward pass
        Floats x, mean_1, rstd_1, qkv, out, lse, x_mid, mean_2, rstd_2, h;
    };
    struct Pass {  // what a batch is computed with
        const Batch& batch;
        Index rows, step;  // rows: B T; step 0: no dropout, and nothing is kept
        std::vector<int32_t> positions;
        std::vector<Kept> kept;
        Floats x, mean, rstd;  // of the last norm
    };

    const float* at(Index start) const { return params.data + start; }
    Floats forward(Pass& pass);  // the head's input (B,T,C)
    void backward(Pass& pass, Floats dx);
    double head(const Pass& pass, const Floats& x, Floats* dx);
    Floats normed(const Floats& x, const Place& norm, Floats& mean, Floats& rstd, Index rows) const;
    Floats normed_again(const Floats& x, const Place& norm, const Floats& mean, const Floats& rstd, Index rows) const;
    Floats norm_backward(const Floats& dy, const Floats& x, const Place& norm, const Floats& mean, const Floats& rstd,
                         const Floats* residual, Index rows);
    Floats linear_backward(const Floats& dy, const Floats& x, const Place& linear, Index rows, Index N, Index K);
    Floats projected(const Pass& pass, const Floats& y, const Place& proj, const Floats& x, Index layer, uint32_t place,
                     Index K) const;
    void drop(const Pass& pass, Floats& x, Index layer, uint32_t place) const;  // in place

    std::vector<Layer> layers;
    Place wte, wpe, ln_f;
};

}  // namespace npgpt
