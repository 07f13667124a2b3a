#include "tokens.h"

#include <algorithm>
#include <cmath>

#include "../runtime/error.h"

namespace npgpt {
namespace {

constexpr uint64_t MIN_COUNT = 2;  // a pair that occurs less often makes no merge
constexpr uint32_t BYTES = 256;

// The code point of the character that stands for a byte
uint32_t code_of(uint32_t byte) {
    const auto shown = [](uint32_t b) { return (b > 32 && b < 127) || (b > 160 && b != 173); };
    if (shown(byte)) return byte;
    uint32_t code = BYTES;
    for (uint32_t b = 0; b < byte; b++) code += !shown(b);
    return code;
}

std::string name_of(uint32_t byte) {
    const uint32_t code = code_of(byte);
    if (code < 128) return std::string(1, char(code));
    return {char(0xC0 | code >> 6), char(0x80 | (code & 63))};
}

}  // namespace

Tokens::Tokens(size_t size, const char* text, size_t length, double share) {
    uint32_t order[BYTES], byte_ids[BYTES];
    for (uint32_t byte = 0; byte < BYTES; byte++) order[byte] = byte;
    if (size)  // as in GPT-2's files: by the characters
        std::sort(order, order + BYTES, [](uint32_t a, uint32_t b) { return code_of(a) < code_of(b); });
    for (uint32_t id = 0; id < BYTES; id++) {
        byte_ids[order[id]] = id;
        names.push_back(name_of(order[id]));
        bytes.emplace_back(1, char(order[id]));
    }
    if (size) {
        PieceCounts counts;
        counts.add(reinterpret_cast<const uint8_t*>(text), size_t(std::nearbyint(share * double(length))));
        merges = train_bpe(counts, byte_ids, size - BYTES - 1, MIN_COUNT);
        for (const Merge& merge : merges) {
            names.push_back(names[merge.left] + names[merge.right]);
            bytes.push_back(bytes[merge.left] + bytes[merge.right]);
        }
        if (names.size() + 1 < size)
            fail(NPGPT_BAD_ARGUMENT, "train: bpe must be at most %zu, for which the text has pairs, or 0 for bytes",
                 names.size() + 1);
    }
    names.emplace_back("<|endoftext|>");
    bytes.push_back(names.back());
    if (size) bpe = std::make_unique<Bpe>(byte_ids, merges, bytes);
}

std::vector<uint16_t> Tokens::encode(const char* text, size_t length) const {
    std::vector<uint16_t> ids(length + 1);
    size_t n = length;
    if (bpe) {
        std::vector<uint32_t> wide(length);
        n = bpe->encode(reinterpret_cast<const uint8_t*>(text), length, wide.data());
        std::copy(wide.begin(), wide.begin() + std::ptrdiff_t(n), ids.begin());
    } else {
        for (size_t i = 0; i < length; i++) ids[i] = uint8_t(text[i]);
    }
    ids.resize(n);
    ids.push_back(uint16_t(end_of_text()));
    return ids;
}

bool Tokens::begins_inside(uint16_t id) const { return (uint8_t(bytes[id][0]) & 0xC0) == 0x80; }

}  // namespace npgpt
