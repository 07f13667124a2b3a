// Errors inside the library are exceptions; guard() at the ABI turns them into a status and a line.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <new>
#include <string_view>

#include "npgpt.h"
#include "utf8.h"

namespace npgpt {

struct Error {
    npgpt_status status;
    char message[sizeof(npgpt_error::message)];
};

// What a file spells in a message must not break its line or its UTF-8: control characters and stray bytes become ?.
inline void make_line(char* text) {
    const std::string_view line(text);
    for (size_t at = 0; at < line.size();) {
        const int length = character_length(line.substr(at));
        if (length < 1 || (length == 1 && (text[at] < 32 || text[at] == 127))) text[at] = '?';
        at += length > 1 ? size_t(length) : 1;
    }
}

// printf's format, cut to what npgpt_error holds
[[noreturn]] __attribute__((format(printf, 2, 3))) inline void fail(npgpt_status status, const char* format, ...) {
    Error error;
    error.status = status;
    va_list values;
    va_start(values, format);
    std::vsnprintf(error.message, sizeof(error.message), format, values);
    va_end(values);
    make_line(error.message);
    throw error;
}

// How much of a name that a file gives is shown in a message: for "%.*s"
inline int shown(std::string_view text) { return text.size() < 64 ? int(text.size()) : 64; }

template <class Body>
npgpt_status guard(npgpt_error* error, Body&& body) noexcept {
    const auto report = [&](npgpt_status status, const char* message) {
        if (error) std::snprintf(error->message, sizeof(error->message), "%s", message);
        return status;
    };
    try {
        body();
        return NPGPT_OK;
    } catch (const Error& e) {
        return report(e.status, e.message);
    } catch (const std::bad_alloc&) {
        return report(NPGPT_NO_MEMORY, "not enough memory");
    } catch (...) {
        return report(NPGPT_INTERNAL, "an error that should not be");
    }
}

}  // namespace npgpt
