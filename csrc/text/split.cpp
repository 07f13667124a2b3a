#include "split.h"

#include <vector>

namespace npgpt {
namespace {

#include "unicode.inl"

// Unicode's White_Space: tab to carriage return, blank, U+0085, U+00A0, U+1680, U+2000.., U+2028, U+2029, ...
const unsigned short SPACES[] = {9, 5, 18, 1, 100, 1, 26, 1, 5599, 1, 2431, 11, 29, 2, 5, 1, 47, 1, 4000, 1};

struct Range {
    uint32_t first, end;
    Kind kind;
};

template <size_t N>
void append(std::vector<Range>& ranges, const unsigned short (&steps)[N], Kind kind) {
    uint32_t code = 0;
    for (size_t i = 0; i + 1 < N; i += 2) {
        const uint32_t first = code + steps[i];
        code = first + steps[i + 1];
        ranges.push_back({first, code, kind});
    }
}

struct Tables {
    Tables() : kinds(TABLED, OTHER) {
        append(ranges, LETTERS, LETTER), append(ranges, NUMBERS, NUMBER), append(ranges, SPACES, SPACE);
        for (const Range& range : ranges)
            for (uint32_t code = range.first; code < range.end && code < TABLED; code++) kinds[code] = range.kind;
    }
    std::vector<Range> ranges;
    std::vector<uint8_t> kinds;
};

const Tables& tables() {
    static const Tables tables;
    return tables;
}

}  // namespace

const uint8_t* kinds() { return tables().kinds.data(); }

Kind kind_of_rare(uint32_t code) {
    for (const Range& range : tables().ranges)
        if (code >= range.first && code < range.end) return range.kind;
    return OTHER;
}

}  // namespace npgpt
