// Byte-pair encoding of a long text on the pool's threads: the same ids as in one go.
#pragma once
#include <vector>

#include "../text/bpe.h"

namespace npgpt {

struct Run {
    size_t first, count;  // ids[first .. first + count)
};

// Encodes text[0..n) into ids, which has room for n; its ids are those of the runs, one behind the other.
std::vector<Run> encode_text(const Bpe& bpe, const uint8_t* text, size_t n, uint32_t* ids);

}  // namespace npgpt
