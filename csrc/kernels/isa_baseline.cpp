// What every CPU of the architecture has: SSE2 on x86-64, NEON on aarch64.
#include "kernels.h"

#define NPGPT_ISA baseline
#define NPGPT_ISA_NAME "baseline"
#define NPGPT_VLEN 4
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
