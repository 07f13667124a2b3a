// From logits to a token: the algorithm of npgpt/runtime/sampling.py, number for number.
#pragma once
#include <vector>

#include "../kernels/kernels.h"
#include "npgpt.h"

namespace npgpt {

// What a caller says about the ids that are drawn, until it says something else
struct Wishes {
    std::vector<uint32_t> allowed;  // bit id % 32 of word id / 32; empty: all
    std::vector<float> bias;        // (V), added to the logits; empty: nothing
};

class Sampler {
  public:
    // logits (V); seen (V): the tokens that the repetition penalty is for; drawn (V), with the other penalties: how
    // often each came; draw: how many came before this one
    int32_t sample(const Kernels& kernels, const float* logits, size_t V, const std::vector<bool>& seen,
                   const std::vector<uint32_t>& drawn, const Wishes& wishes, const npgpt_sampling& how, uint64_t draw);

    // Takes at once what draws from V logits need: none allocates then.
    void reserve(size_t V) { z.reserve(V), order.reserve(V); }

  private:
    std::vector<double> z;
    std::vector<int32_t> order;
};

void check_sampling(const npgpt_sampling& how, size_t V);  // throws Error

}  // namespace npgpt
