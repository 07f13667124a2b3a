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

namespace {

// GPT2's piece, in a text that ends before its next number.
const uint8_t* smollm_piece_end(const uint8_t* at, const uint8_t* end, const uint8_t* kinds) {
    const Character first = character_at(at, end, kinds);
    if (first.kind == NUMBER) return at + first.length;
    const uint8_t* next = piece_end(at, end, kinds);
    if (first.kind != SPACE) return next;
    const uint8_t* behind = at + first.length;  // a number takes no space along: it is all of these that end before it
    while (behind < end) {
        const Character c = character_at(behind, end, kinds);
        if (c.kind == NUMBER) return behind;
        if (c.kind != SPACE) break;
        behind += c.length;
    }
    return next;
}

// The bytes of 's, 't, 're, 've, 'm, 'll or 'd at `at`, in small letters or large ones; 0 if there is none. The long s is a
// small s of which the large one is S.
size_t contraction(const uint8_t* at, const uint8_t* end) {
    const auto letter = [&](ptrdiff_t i) { return end - at > i ? at[i] | 32 : 0; };
    if (*at != '\'') return 0;
    const int a = letter(1), b = letter(2);
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if ((a == 'l' && b == 'l') || (b == 'e' && (a == 'r' || a == 'v'))) return 3;
    return end - at > 2 && at[1] == 0xC5 && at[2] == 0xBF ? 3 : 0;
}

const uint8_t* llama3_piece_end(const uint8_t* at, const uint8_t* end, const uint8_t* kinds, int digits) {
    if (const size_t length = contraction(at, end)) return at + length;
    const auto look = [&](const uint8_t* p) { return p < end ? character_at(p, end, kinds) : Character{SPACE, 0}; };
    const auto is_line_end = [&](const uint8_t* p) { return p < end && (*p == '\r' || *p == '\n'); };
    const auto run = [&](const uint8_t* p, Kind kind) {
        for (Character c = look(p); c.length && c.kind == kind; c = look(p)) p += c.length;
        return p;
    };
    const Character first = look(at), second = look(at + first.length);
    if (first.kind == LETTER) return run(at, LETTER);
    if (first.kind != NUMBER && !is_line_end(at) && second.length && second.kind == LETTER)
        return run(at + first.length, LETTER);
    if (first.kind == NUMBER) {
        const uint8_t* next = at + first.length;
        for (Character c = look(next); --digits && c.length && c.kind == NUMBER; c = look(next)) next += c.length;
        return next;
    }
    if (first.kind == OTHER || (*at == ' ' && second.length && second.kind == OTHER)) {
        const uint8_t* next = run(at + (first.kind == OTHER ? 0 : 1), OTHER);
        while (is_line_end(next)) next++;
        return next;
    }
    const uint8_t *next = at, *line = nullptr, *last = at;
    for (Character c = look(next); c.length && c.kind == SPACE; c = look(next)) {
        last = next;
        if (is_line_end(next)) line = next + 1;
        next += c.length;
    }
    if (line) return line;
    return next < end && last > at ? last : next;
}

}  // namespace

const uint8_t* piece_end(Split split, const uint8_t* at, const uint8_t* end, const uint8_t* kinds) {
    if (split == Split::GPT2) return piece_end(at, end, kinds);
    if (split == Split::SMOLLM) return smollm_piece_end(at, end, kinds);
    return llama3_piece_end(at, end, kinds, split == Split::LLAMA3 ? 3 : 1);
}

Kind kind_of_rare(uint32_t code) {
    for (const Range& range : tables().ranges)
        if (code >= range.first && code < range.end) return range.kind;
    return OTHER;
}

}  // namespace npgpt
