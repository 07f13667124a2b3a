// A vector of NPGPT_VLEN floats. Included by the per-ISA files alone, which define NPGPT_VLEN and NPGPT_ISA
// first; everything lives in that ISA's namespace, so that the linker can never mix two builds of one function.
// GCC's vector extensions carry the arithmetic; only what they cannot say is an intrinsic.
#if NPGPT_VLEN == 8
#include <immintrin.h>
#endif

namespace npgpt {
namespace NPGPT_ISA {

constexpr Index VLEN = NPGPT_VLEN;

typedef float Vec __attribute__((vector_size(4 * NPGPT_VLEN)));
typedef int32_t IVec __attribute__((vector_size(4 * NPGPT_VLEN)));
typedef float UnalignedVec __attribute__((vector_size(4 * NPGPT_VLEN), aligned(4), may_alias));

#define NPGPT_INLINE static inline __attribute__((always_inline))

NPGPT_INLINE Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
NPGPT_INLINE void store(float* p, Vec x) { *reinterpret_cast<UnalignedVec*>(p) = x; }

NPGPT_INLINE Vec set1(float x) {
#if NPGPT_VLEN == 8
    return Vec{x, x, x, x, x, x, x, x};
#else
    return Vec{x, x, x, x};
#endif
}

// a * b + c: rounded once where the ISA has FMA, twice on the baseline
NPGPT_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if NPGPT_VLEN == 8
    return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

NPGPT_INLINE Vec vmax(Vec a, Vec b) { return a > b ? a : b; }
NPGPT_INLINE Vec select(IVec mask, Vec yes, Vec no) { return mask ? yes : no; }

// The last n < VLEN elements of a row, without touching what lies behind them.
NPGPT_INLINE Vec load_part(const float* p, Index n, float fill = 0.0f) {
    float lane[VLEN];
    for (Index i = 0; i < VLEN; i++) lane[i] = i < n ? p[i] : fill;
    return load(lane);
}
NPGPT_INLINE void store_part(float* p, Vec x, Index n) {
    for (Index i = 0; i < n; i++) p[i] = x[i];
}

// Sum and maximum of the lanes, by halves: a fixed order.
NPGPT_INLINE float reduce_add(Vec x) {
    float lane[VLEN];
    store(lane, x);
    for (Index half = VLEN / 2; half > 0; half /= 2)
        for (Index i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}
NPGPT_INLINE float reduce_max(Vec x) {
    float lane[VLEN];
    store(lane, x);
    for (Index half = VLEN / 2; half > 0; half /= 2)
        for (Index i = 0; i < half; i++) lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
    return lane[0];
}

// e^x with a relative error below 2 ulp on [-87.3, 88.3]; 0 below, infinity above, NaN stays NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2, e^r by its Taylor series to r^7 (remainder under 0.1 ulp), 2^n by the exponent bits.
NPGPT_INLINE Vec vexp(Vec x) {
    const Vec magic = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    Vec t = fma(x, set1(1.44269504f), magic);
    Vec n = t - magic;
    Vec r = fma(n, set1(-0.693359375f), x);  // ln 2 in two parts: n times the first is exact
    r = fma(n, set1(2.12194440e-4f), r);
    Vec p = set1(1.0f / 5040);
    p = fma(p, r, set1(1.0f / 720));
    p = fma(p, r, set1(1.0f / 120));
    p = fma(p, r, set1(1.0f / 24));
    p = fma(p, r, set1(1.0f / 6));
    p = fma(p, r, set1(0.5f));
    p = fma(p, r, set1(1.0f));
    p = fma(p, r, set1(1.0f));
    Vec power = (Vec)(((IVec)t << 23) + 0x3f800000);
    Vec y = p * power;
    y = select(x < set1(-87.3f), set1(0.0f), y);
    return select(x > set1(88.3f), set1(__builtin_inff()), y);
}

// gelu(x) = x s and gelu'(x) = s + 2 x s (1 - s) z' with s = 1 / (1 + e^(-2z)), z = sqrt(2/pi) (x + 0.044715 x^3)
NPGPT_INLINE Vec gelu_gate(Vec x) {
    const Vec a = set1(-2 * 0.79788456f), b = set1(-2 * 0.79788456f * 0.044715f);
    return set1(1.0f) / (set1(1.0f) + vexp(x * fma(x * x, b, a)));
}
NPGPT_INLINE Vec vgelu(Vec x) { return x * gelu_gate(x); }
NPGPT_INLINE Vec gelu_slope(Vec x, Vec s) {  // s = gelu_gate(x)
    const Vec c = set1(2 * 0.79788456f), d = set1(2 * 0.79788456f * 3 * 0.044715f);
    Vec tail = s * (set1(1.0f) - s);
    // far from zero the tail is 0 (the gate rounds to 0 or 1) while x * z' may overflow: keep 0 * inf from becoming NaN
    Vec slope = fma(tail, x * fma(x * x, d, c), s);
    return select(tail == set1(0.0f), s, slope);
}
NPGPT_INLINE Vec vgelu_slope(Vec x) { return gelu_slope(x, gelu_gate(x)); }

}  // namespace NPGPT_ISA
}  // namespace npgpt
