#include "stream.h"

#include <algorithm>

#include "utf8.h"

namespace npgpt {
namespace {

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
