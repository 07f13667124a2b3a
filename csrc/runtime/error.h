// Errors inside the library are exceptions; guard() at the ABI turns them into a status and a line.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <new>
#include <string_view>

#include "npgpt.h"

namespace npgpt {

struct Error {
    npgpt_status status;
    char message[sizeof(npgpt_error::message)];
};

// What a file spells in a message must not break its line or its UTF-8: control characters and stray bytes become ?.
inline void make_line(char* text) {
    for (unsigned char* c = reinterpret_cast<unsigned char*>(text); *c;) {
        int more = *c < 0xC2 ? 0 : *c < 0xE0 ? 1 : *c < 0xF0 ? 2 : *c < 0xF5 ? 3 : 0, found = 0;
        while (found < more && (c[1 + found] & 0xC0) == 0x80) found++;
        if (found < more || *c < 32 || (*c > 126 && !more)) *c = '?', more = 0;
        c += 1 + more;
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
