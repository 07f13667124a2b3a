// What pybind11 asks for the C++ name of a type that no Python class stands for: npgpt binds none, and libstdc++.a has
// 50 kB of demangler for it. Without an answer the name stays as the compiler writes it. Hidden: for npgpt._kernels alone.
#include <cstddef>

#if defined(__ELF__)
// NOLINTBEGIN(bugprone-reserved-identifier): the name is the C++ ABI's
extern "C" __attribute__((visibility("hidden"))) char* __cxa_demangle(const char*, char*, size_t*, int* status);
char* __cxa_demangle(const char*, char*, size_t*, int* status) {
    if (status) *status = -2;  // "not a valid name"
    return nullptr;
}
#endif
// NOLINTEND(bugprone-reserved-identifier)
