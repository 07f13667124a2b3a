// AVX2's kernels but for the products of int8, which AVX-512 VNNI makes in one instruction (Cascade Lake, Zen 4 and later).
// Compiled with -mavx512vl -mavx512vnni beside AVX2's flags; same vectors, same bits.
#include "kernels.h"

#define NPGPT_ISA avx512vnni
#define NPGPT_VLEN 8
#define NPGPT_VNNI
#include "simd.h"
#include "int8.inl"

namespace npgpt {
namespace avx512vnni {

void use_int8(Kernels& kernels);
void use_int8(Kernels& kernels) {
    kernels.matvec_int8 = matvec_int8;
    kernels.round_int8 = round_int8;
}

}  // namespace avx512vnni
}  // namespace npgpt
