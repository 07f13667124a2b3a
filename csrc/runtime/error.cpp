// How a build without exceptions leaves: setjmp where the library is entered, longjmp where it fails.
#include "error.h"

#include "../text/refuse.h"

#if !defined(__cpp_exceptions)
namespace npgpt {
namespace {

thread_local Guard* innermost = nullptr;

}  // namespace

Guard::Guard() : outer(innermost), handler(std::set_new_handler(fail_memory)) { innermost = this; }

Guard::~Guard() {
    innermost = outer;
    std::set_new_handler(handler);
}

Guard& innermost_guard() { return *innermost; }

void leave(const Error& error) {
    innermost->error = error;
    std::longjmp(innermost->place, 1);
}

void refuse(const std::string& message) { fail(NPGPT_BAD_FORMAT, "GGUF: %s: %s", innermost->key, message.c_str()); }
void refuse_length(const char*) { fail(NPGPT_INTERNAL, "an error that should not be"); }
void lack_memory() { fail_memory(); }

}  // namespace npgpt
#endif
