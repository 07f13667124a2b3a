// NumPy's random numbers, to the bit: numpy.random.default_rng(entropy), of which training draws the first weights and the
// order of the windows.
//
// SeedSequence (O'Neill's seed_seq), PCG64 with XSL-RR output (O'Neill, HMC-CS-2014-0905), Marsaglia and Tsang's ziggurat
// with 256 layers, Lemire's bounded integers (arXiv:1805.10941).
#pragma once
#include <cstddef>
#include <cstdint>

namespace npgpt {

class Generator {
  public:
    Generator(const uint32_t* entropy, size_t count);
    float normal();  // standard_normal(dtype=float32)
    uint32_t below(uint32_t n);  // integers(n), n >= 1
    uint32_t up_to(uint32_t most);  // what permutation() draws: [0, most], by rejection

  private:
    using Wide = unsigned __int128;
    uint64_t next64();
    uint32_t next32();  // the low half of a word, then its high half
    float uniform() { return float(next32() >> 8) * (1.0f / 16777216.0f); }

    Wide state = 0, increment = 0;
    uint32_t half = 0;
    bool has_half = false;
};

}  // namespace npgpt
