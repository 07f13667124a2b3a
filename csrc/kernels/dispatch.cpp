// Which tables this CPU can run: asked once, of the CPU and of the operating system, not of the compiler.
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "kernels.h"

namespace npgpt {
namespace baseline {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512vnni {
void use_int8(Kernels& kernels);
}
static bool has_f16c() {  // which clang's __builtin_cpu_supports does not know
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && c >> 29 & 1;
}
#endif

const Kernels* const* available_kernels(int* count) {
    static const Kernels* tables[3];
    static const int n = [] {
        int i = 0;
        tables[i++] = &baseline::kernels;
#if defined(__x86_64__)
        __builtin_cpu_init();  // reads cpuid and, for AVX, whether the system saves the wide registers (xgetbv)
        if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !has_f16c()) return i;
        tables[i++] = &avx2::kernels;
        if (!__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512vnni")) return i;
        static Kernels vnni = avx2::kernels;
        vnni.name = "avx512vnni";
        avx512vnni::use_int8(vnni);
        tables[i++] = &vnni;
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
