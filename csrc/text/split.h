// The split of a text into pieces, which byte-pair merges never cross, by hand what patterns say. GPT2 is
//     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// SMOLLM makes each \p{N} a piece, and splits what lies between them as GPT2 does. LLAMA3 is
//     (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
// and QWEN2 the same with \p{N} for \p{N}{1,3}.
// A byte that belongs to no valid UTF-8 character counts as a character that is neither letter, number nor space.
#pragma once
#include <cstddef>
#include <cstdint>

namespace npgpt {

enum class Split : uint8_t { GPT2, SMOLLM, LLAMA3, QWEN2 };
enum Kind : uint8_t { OTHER, LETTER, NUMBER, SPACE };

// The kind of a Unicode code point; `kinds` is a table of all below TABLED.
constexpr uint32_t TABLED = 0x20000;
[[gnu::visibility("default")]] const uint8_t* kinds();
[[gnu::visibility("default")]] Kind kind_of_rare(uint32_t code);  // code >= TABLED

struct Character {
    Kind kind;
    uint32_t length;  // bytes, 1..4
};

// The character at `at` < end.
inline Character character_at(const uint8_t* at, const uint8_t* end, const uint8_t* kinds) {
    const uint32_t a = at[0];
    if (a < 0x80) return {Kind(kinds[a]), 1};
    const size_t room = size_t(end - at);
    const auto continues = [&](size_t i) { return (at[i] & 0xC0) == 0x80; };
    if (a >= 0xC2 && a < 0xE0) {
        if (room > 1 && continues(1)) return {Kind(kinds[(a & 31) << 6 | (at[1] & 63)]), 2};
    } else if (a >= 0xE0 && a < 0xF0) {
        if (room > 2 && continues(1) && continues(2)) {
            const uint32_t code = (a & 15) << 12 | (at[1] & 63) << 6 | (at[2] & 63);
            if (code >= 0x800 && (code < 0xD800 || code > 0xDFFF)) return {Kind(kinds[code]), 3};
        }
    } else if (a >= 0xF0 && a < 0xF5) {
        if (room > 3 && continues(1) && continues(2) && continues(3)) {
            const uint32_t code = (a & 7) << 18 | (at[1] & 63) << 12 | (at[2] & 63) << 6 | (at[3] & 63);
            if (code >= 0x10000 && code < 0x110000) return {code < TABLED ? Kind(kinds[code]) : kind_of_rare(code), 4};
        }
    }
    return {OTHER, 1};
}

// Where the piece of GPT2 that begins at `at` < end is over.
inline const uint8_t* piece_end(const uint8_t* at, const uint8_t* end, const uint8_t* kinds) {
    if (*at == '\'' && end - at > 1) {
        const uint8_t a = at[1], b = end - at > 2 ? at[2] : 0;
        if (a == 's' || a == 't' || a == 'm' || a == 'd') return at + 2;
        if ((a == 'l' && b == 'l') || (b == 'e' && (a == 'r' || a == 'v'))) return at + 3;
    }
    Character c = character_at(at, end, kinds);
    if (*at == ' ' && end - at > 1) {  // a blank goes with what follows it
        const Character after = character_at(at + 1, end, kinds);
        if (after.kind != SPACE) at++, c = after;
    }
    const uint8_t *last = at, *next = at + c.length;
    const Kind kind = c.kind;
    while (next < end) {
        c = character_at(next, end, kinds);
        if (c.kind != kind) break;
        last = next;
        next += c.length;
    }
    // Spaces before a word leave it the last of them.
    return kind == SPACE && next < end && last > at ? last : next;
}

// The same by any of the patterns.
const uint8_t* piece_end(Split split, const uint8_t* at, const uint8_t* end, const uint8_t* kinds);

// Whether a piece begins at text[at] whatever surrounds it: at a blank behind a printable ASCII character; by the patterns
// that give signs no line ends, at a line end there too.
inline bool certain_cut(Split split, const uint8_t* text, size_t at) {
    const bool line_end = text[at] == '\n' && (split == Split::GPT2 || split == Split::SMOLLM);
    return at && (text[at] == ' ' || line_end) && text[at - 1] > ' ' && text[at - 1] < 0x7F;
}

}  // namespace npgpt
