// Which tables this CPU can run: asked once, of the CPU and of the operating system, not of the compiler.
#include <cstring>

#include "kernels.h"

namespace npgpt {
namespace baseline {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
#endif

const Kernels* const* available_kernels(int* count) {
    static const Kernels* tables[2];
    static const int n = [] {
        int i = 0;
        tables[i++] = &baseline::kernels;
#if defined(__x86_64__)
        __builtin_cpu_init();  // reads cpuid and, for AVX, whether the system saves the wide registers (xgetbv)
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
            tables[i++] = &avx2::kernels;
#endif
        return i;
    }();
    *count = n;
    return tables;
}

const Kernels* find_kernels(const char* name) {
    int count;
    const Kernels* const* tables = available_kernels(&count);
    if (!std::strcmp(name, "auto")) return tables[count - 1];
    for (int i = 0; i < count; i++)
        if (!std::strcmp(name, tables[i]->name)) return tables[i];
    return nullptr;
}

}  // namespace npgpt
