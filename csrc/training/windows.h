// The windows of a text that a step learns: a pure function of the seed and the step, as npgpt/text/dataset.py has it.
#pragma once
#include <cstdint>
#include <vector>

#include "../kernels/kernels.h"

namespace npgpt {

// x, y (rows,T): y[b,t] follows x[b,t]; a y of -1 does not count
struct Batch {
    Index rows = 0, T = 0;
    std::vector<int32_t> x, y;
    Index counted() const;
};

// Ids (N) in windows of T targets
class Windows {
  public:
    Windows(std::vector<uint16_t> ids, Index T, Index batch_size, uint32_t seed, int32_t end_of_text);

    // Of step 0, 1, ...: an epoch has all windows in random order, of a text that is rotated in three epochs of four. The
    // last batch of an epoch may be smaller.
    const Batch& of_step(Index step);

    // The first rows windows from number `first` of `keep` that are evenly spaced over the text
    const Batch& evenly(Index first, Index keep);

    Index count() const { return (Index(ids.size()) + T - 1) / T; }
    Index size() const { return Index(ids.size()); }

  private:
    const Batch& cut(const int64_t* windows, Index rows);

    const std::vector<uint16_t> ids;
    const Index T, batch_size;
    const uint32_t seed;
    const int32_t end_of_text;
    Index epoch = -1, shift = 0;  // of the batch made last
    std::vector<int64_t> order, spaced;
    Batch batch;
};

}  // namespace npgpt
