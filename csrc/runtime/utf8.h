// Where a character of UTF-8 ends, by the standard's table of well-formed sequences (Unicode 16, table 3-7).
#pragma once
#include <cstdint>
#include <string_view>

namespace npgpt {

// How many bytes a character that begins with these has: 0 if none does, negative if more than `text` are needed.
inline int character_length(std::string_view text) {
    const auto byte = [&](size_t i) { return uint8_t(text[i]); };
    const uint8_t a = byte(0);
    if (a < 0x80) return 1;
    const int length = a < 0xC2 ? 0 : a < 0xE0 ? 2 : a < 0xF0 ? 3 : a < 0xF5 ? 4 : 0;
    if (!length || text.size() == 1) return -length;
    // The second byte rules out overlong forms, surrogates and what is beyond Unicode.
    const uint8_t low = a == 0xE0 ? 0xA0 : a == 0xF0 ? 0x90 : 0x80, high = a == 0xED ? 0x9F : a == 0xF4 ? 0x8F : 0xBF;
    if (byte(1) < low || byte(1) > high) return 0;
    for (size_t i = 2; i < text.size() && i < size_t(length); i++)
        if ((byte(i) & 0xC0) != 0x80) return 0;
    return text.size() < size_t(length) ? -length : length;
}

}  // namespace npgpt
