// AVX2, FMA and F16C (Haswell, Zen and later). Compiled with -mavx2 -mfma -mf16c: nothing in here may run before dispatch.cpp has asked the CPU.
#include "kernels.h"

#define NPGPT_ISA avx2
#define NPGPT_ISA_NAME "avx2"
#define NPGPT_VLEN 8
#include "simd.h"
#include "matmul.inl"
#include "rows.inl"
#include "attention.inl"
#include "elements.inl"
#include "matvec.inl"
#include "blocks.inl"
#include "int8.inl"
#include "attend.inl"
#include "probe.inl"
#include "table.inl"
