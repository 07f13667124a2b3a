// A model's weights, where they lie: in a mapped GGUF file or in the caller's arrays. Nothing is copied but by pack().
#pragma once
#include <atomic>
#include <memory>
#include <vector>

#include "../kernels/kernels.h"
#include "../threads/lock.h"
#include "buffer.h"
#include "memory.h"
#include "npgpt.h"
#include "vocabulary.h"

namespace npgpt {

struct Norm {
    const float *weight, *bias;  // (C); bias may be null, and is with RMSNorm
};
// A linear layer (N,K): one matrix, or up to three below each other, as files have queries, keys and values apart, each in
// a type of its own.
struct Linear {
    struct Part {
        Matrix weight;
        const float* bias;  // (its N) or null
        Index begin;        // of its outputs among the layer's
    };
    void add(const Matrix& weight, const float* bias) {
        parts[count++] = {weight, bias, N};
        N += weight.N, K = weight.K;
    }

    static constexpr int PARTS = 3;
    Part parts[PARTS] = {};  // of which some are empty
    int count = 0;
    Index N = 0, K = 0;
};
struct Layer {
    Norm ln_1, ln_2;
    Linear c_attn, attn_proj, c_fc, mlp_proj;
};

struct Layers {
    std::vector<Layer> layers;
    uint64_t version = 0;  // of the weights that were packed
    Buffer packed;
};

struct Model {
    static std::shared_ptr<Model> open(const char* path);
    static std::shared_ptr<Model> from_gguf(const uint8_t* data, size_t size);
    static std::shared_ptr<Model> from_tensors(const npgpt_config& config, const npgpt_tensor* tensors, size_t count);

    // Copies the matrices of COLUMNS into strips, which are read faster, until the weights change; same to the bit.
    void pack();
    std::shared_ptr<const Layers> layers() const;

    npgpt_config config;  // what was 0 for a default is that default
    Matrix wte, wpe, head;  // wpe without data where positions are rotary
    std::vector<float> speeds;  // rotary positions: the radians by which each pair of a head turns a token
    bool in_pairs = false;  // a head's numbers lie pair by pair, not the first of all pairs, then the second
    std::shared_ptr<Layers> in_place = std::make_shared<Layers>();
    Norm ln_f;  // weight null with post_norm
    std::unique_ptr<Vocabulary> vocabulary;
    std::atomic<const Kernels*> kernels{find_kernels("auto")};
    std::atomic<uint64_t> version{0};

  private:
    std::unique_ptr<Mapping> mapping;
    mutable Lock packing;
    std::shared_ptr<const Layers> packed;
};

}  // namespace npgpt
