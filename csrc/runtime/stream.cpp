#include "stream.h"

#include <algorithm>
#include <cstdint>

namespace npgpt {
namespace {

// How many bytes a character that begins with these has: 0 if none does, negative if more than `text` are needed.
int character_length(const std::string& text) {
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

const char REPLACEMENT[] = "\xEF\xBF\xBD";

}  // namespace

std::string Stream::push(const std::string& bytes) {
    for (const char byte : bytes) {
        partial += byte;
        // As many bytes as could begin a character become one U+FFFD; the one that did not fit begins anew.
        if (character_length(partial) == 0) {
            held += REPLACEMENT;
            partial.erase(0, std::max<size_t>(1, partial.size() - 1));
            if (!partial.empty() && character_length(partial) == 0) held += REPLACEMENT, partial.clear();
        }
        if (!partial.empty() && character_length(partial) > 0) held += partial, partial.clear();
    }
    return take(false);
}

std::string Stream::close() {
    if (!partial.empty()) held += REPLACEMENT, partial.clear();
    return take(true);
}

std::string Stream::take(bool end) {
    if (done) return {};
    size_t first = std::string::npos, undecided = 0;
    for (const std::string& s : stop) first = std::min(first, held.find(s));
    done = first != std::string::npos;
    if (!done && !end)
        for (const std::string& s : stop)
            for (size_t n = std::min(held.size(), s.size() - 1); n > undecided; n--)
                if (!held.compare(held.size() - n, n, s, 0, n)) undecided = n;
    std::string ready = held.substr(0, done ? first : held.size() - undecided);
    held.erase(0, ready.size());
    return ready;
}

}  // namespace npgpt
