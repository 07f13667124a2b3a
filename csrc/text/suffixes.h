// The suffixes of a text in order: what an index of all its substrings is made of. No Python, no threads.
#pragma once
#include <cstdint>

namespace npgpt {

// Writes the positions of the suffixes of text[0..n) into sorted[0..n), the smallest suffix first; one that is the
// beginning of another is the smaller. Symbols are below `symbols`. In linear time, by induced sorting: Nong, Zhang and
// Chan, "Two Efficient Algorithms for Linear Time Suffix Array Construction" (2009). std::bad_alloc where memory lacks:
// n / 8 bytes, and for each recursion, which has half as many symbols, at most 4 more for each of these.
void sort_suffixes(const uint16_t* text, int32_t n, int32_t symbols, int32_t* sorted);

}  // namespace npgpt
