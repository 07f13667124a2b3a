// How text/ refuses what it is given. A build without exceptions ends in a function of whoever includes text/.
#pragma once
#include <new>
#include <stdexcept>
#include <string>

namespace npgpt {

#if defined(__cpp_exceptions)
[[noreturn]] inline void refuse(const std::string& message) { throw std::invalid_argument(message); }
[[noreturn]] inline void refuse_length(const char* message) { throw std::length_error(message); }
[[noreturn]] inline void lack_memory() { throw std::bad_alloc(); }
#else
[[noreturn]] void refuse(const std::string& message);
[[noreturn]] void refuse_length(const char* message);
[[noreturn]] void lack_memory();
#endif

}  // namespace npgpt
