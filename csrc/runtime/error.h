// Errors inside the library are exceptions; guard() at the ABI turns them into a status and a line.
#pragma once
#include <cstdarg>
#include <cstdio>
#if !defined(__cpp_exceptions)
#include <csetjmp>
#endif
#include <new>
#include <stdexcept>
#include <string_view>

#include "npgpt.h"
#include "utf8.h"

namespace npgpt {

struct Error {
    npgpt_status status;
    char message[sizeof(npgpt_error::message)];
};

#if defined(__cpp_exceptions)
[[noreturn]] inline void leave(const Error& error) { throw error; }
#else
[[noreturn]] void leave(const Error& error);  // to the guard that was entered last
#endif

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
    leave(error);
}

[[noreturn]] inline void fail_memory() { fail(NPGPT_NO_MEMORY, "not enough memory"); }

// How much of a name that a file gives is shown in a message: for "%.*s"
inline int shown(std::string_view text) { return text.size() < 64 ? int(text.size()) : 64; }

inline npgpt_status report(npgpt_error* error, npgpt_status status, const char* message) {
    if (error) std::snprintf(error->message, sizeof(error->message), "%s", message);
    return status;
}

#if defined(__cpp_exceptions)

template <class Body>
npgpt_status guard(npgpt_error* error, Body&& body) noexcept {
    try {
        body();
        return NPGPT_OK;
    } catch (const Error& e) {
        return report(error, e.status, e.message);
    } catch (const std::bad_alloc&) {
        return report(error, NPGPT_NO_MEMORY, "not enough memory");
    } catch (...) {
        return report(error, NPGPT_INTERNAL, "an error that should not be");
    }
}

// body(), what it refuses being wrong with a file's key
template <class Body>
void check_key(const char* key, Body&& body) {
    try {
        body();
    } catch (const std::invalid_argument& refused) {
        fail(NPGPT_BAD_FORMAT, "GGUF: %s: %s", key, refused.what());
    }
}

#else

// A failure jumps back to where the library was entered. What was half made then is lost, and its memory with it.
class Guard {
  public:
    Guard();
    ~Guard();
    Guard(const Guard&) = delete;
    std::jmp_buf place;
    Error error;
    const char* key = "";  // of a file, that is read

  private:
    Guard* const outer;
    const std::new_handler handler;
};
Guard& innermost_guard();

template <class Body>
npgpt_status guard(npgpt_error* error, Body&& body) {
    Guard here;
    if (setjmp(here.place)) return report(error, here.error.status, here.error.message);
    body();
    return NPGPT_OK;
}

template <class Body>
void check_key(const char* key, Body&& body) {
    Guard& guard = innermost_guard();
    guard.key = key;
    body();
    guard.key = "";
}

#endif

}  // namespace npgpt
