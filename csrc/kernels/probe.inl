// The limits of the machine itself, for benchmarks to be held against.

namespace npgpt {
namespace NPGPT_ISA {

// Multiply-adds on twelve accumulators that never leave the registers; returns how many flops that was.
static double probe_flops(Index rounds, float* sink) {
    Vec acc[12];
    const Vec x = set1(0.999f), y = set1(1e-4f);
#pragma GCC unroll 12
    for (int i = 0; i < 12; i++) acc[i] = set1(float(i));
    for (Index round = 0; round < rounds; round++)
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++) acc[i] = fma(acc[i], x, y);
    Vec total = Vec{};
    for (int i = 0; i < 12; i++) total += acc[i];
    *sink = reduce_add(total);
    return 2.0 * 12 * VLEN * double(rounds);
}

// Reads n floats once; the sum keeps the compiler honest.
static float probe_read(const float* x, Index n) {
    Vec acc[8] = {};
    for (Index i = 0; i + 8 * VLEN <= n; i += 8 * VLEN)
#pragma GCC unroll 8
        for (int q = 0; q < 8; q++) acc[q] += load(x + i + q * VLEN);
    Vec total = Vec{};
    for (int q = 0; q < 8; q++) total += acc[q];
    return reduce_add(total);
}

}  // namespace NPGPT_ISA
}  // namespace npgpt
