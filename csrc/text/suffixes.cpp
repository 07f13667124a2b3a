#include "suffixes.h"

#include <algorithm>
#include <vector>

namespace npgpt {
namespace {

constexpr int32_t NONE = -1;

// A suffix is small (S) where it is smaller than the one behind it, else large (L). The leftmost S of each run of them
// begins a piece (the paper's LMS substring), which ends where the next one begins. The order of the pieces gives that of
// all suffixes: an L is found through the smaller suffix behind it, in a walk upwards, and an S in a walk downwards.
template <class Symbol>
class Sorter {
  public:
    Sorter(const Symbol* text_, int32_t n_, int32_t symbols, int32_t* sorted_)
        : text(text_), n(n_), sorted(sorted_), sizes(size_t(symbols)), bucket(size_t(symbols)), small(size_t(n_)) {
        for (int32_t i = 0; i < n; i++) sizes[text[i]]++;
        for (int32_t i = n - 2; i >= 0; i--)
            small[i] = text[i] < text[i + 1] || (text[i] == text[i + 1] && small[i + 1]);
    }

    void sort() {
        std::fill(sorted, sorted + n, NONE);
        to_ends();
        for (int32_t i = 1; i < n; i++)
            if (begins_piece(i)) sorted[--bucket[text[i]]] = i;
        induce();  // now the pieces are in order, but not yet the suffixes that begin with them
        int32_t m = 0;
        for (int32_t i = 0; i < n; i++)
            if (begins_piece(sorted[i])) sorted[m++] = sorted[i];
        if (m > 1) sort_pieces(m);
        std::fill(sorted + m, sorted + n, NONE);
        to_ends();
        for (int32_t i = m - 1; i >= 0; i--) {
            const int32_t at = sorted[i];
            sorted[i] = NONE;
            sorted[--bucket[text[at]]] = at;
        }
        induce();
    }

  private:
    bool begins_piece(int32_t i) const { return i > 0 && small[i] && !small[i - 1]; }

    void to_starts() {
        int32_t sum = 0;
        for (size_t c = 0; c < sizes.size(); c++) bucket[c] = sum, sum += sizes[c];
    }
    void to_ends() {
        int32_t sum = 0;
        for (size_t c = 0; c < sizes.size(); c++) bucket[c] = sum += sizes[c];
    }

    // Puts all suffixes in order, from those that begin a piece, at the ends of their symbols' buckets.
    void induce() {
        to_starts();
        sorted[bucket[text[n - 1]]++] = n - 1;  // through the empty suffix, the smallest of all
        for (int32_t i = 0; i < n; i++) {
            const int32_t before = sorted[i] - 1;
            if (before >= 0 && !small[before]) sorted[bucket[text[before]]++] = before;
        }
        to_ends();
        for (int32_t i = n - 1; i >= 0; i--) {
            const int32_t before = sorted[i] - 1;
            if (before >= 0 && small[before]) sorted[--bucket[text[before]]] = before;
        }
    }

    bool equal_pieces(int32_t a, int32_t b) const {
        for (int32_t i = 0;; i++) {
            if (a + i == n || b + i == n || text[a + i] != text[b + i]) return false;
            if (i && (begins_piece(a + i) || begins_piece(b + i))) return begins_piece(a + i) && begins_piece(b + i);
        }
    }

    // sorted[0..m): the pieces in order -> the suffixes that begin with them in order. Equal pieces get equal names, and
    // the names in the order of the text are a shorter text whose suffixes are sorted in the same way.
    void sort_pieces(int32_t m) {
        int32_t* names = sorted + m;  // of the piece at i in names[i / 2], as two never begin side by side
        std::fill(names, sorted + n, NONE);
        int32_t name = 0;
        for (int32_t i = 0; i < m; i++) {
            if (i && !equal_pieces(sorted[i - 1], sorted[i])) name++;
            names[sorted[i] / 2] = name;
        }
        int32_t* shorter = sorted + n;
        for (int32_t i = n - 1; i >= m; i--)
            if (sorted[i] != NONE) *--shorter = sorted[i];
        if (name + 1 < m)
            Sorter<int32_t>(shorter, m, name + 1, sorted).sort();
        else
            for (int32_t i = 0; i < m; i++) sorted[shorter[i]] = i;
        int32_t* starts = shorter;
        for (int32_t i = 1; i < n; i++)
            if (begins_piece(i)) *starts++ = i;
        for (int32_t i = 0; i < m; i++) sorted[i] = shorter[sorted[i]];
    }

    const Symbol* text;
    const int32_t n;
    int32_t* sorted;
    std::vector<int32_t> sizes, bucket;  // of the suffixes that begin with a symbol
    std::vector<bool> small;
};

}  // namespace

void sort_suffixes(const uint16_t* text, int32_t n, int32_t symbols, int32_t* sorted) {
    if (n > 0) Sorter<uint16_t>(text, n, symbols, sorted).sort();
}

}  // namespace npgpt
