// A vector of NPGPT_VLEN floats. Included by the per-ISA files alone, which define NPGPT_VLEN and NPGPT_ISA
// first; everything lives in that ISA's namespace, so that the linker can never mix two builds of one function.
// GCC's vector extensions carry the arithmetic; only what they cannot say is an intrinsic.
#if NPGPT_VLEN == 8
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace npgpt {
namespace NPGPT_ISA {

constexpr Index VLEN = NPGPT_VLEN;

typedef float Vec __attribute__((vector_size(4 * NPGPT_VLEN)));
typedef int32_t IVec __attribute__((vector_size(4 * NPGPT_VLEN)));
typedef float UnalignedVec __attribute__((vector_size(4 * NPGPT_VLEN), aligned(4), may_alias));

#define NPGPT_INLINE static inline __attribute__((always_inline))
#define NPGPT_METHOD inline __attribute__((always_inline))

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

// The larger and the smaller; where one is NaN, b.
NPGPT_INLINE Vec vmax(Vec a, Vec b) {
#if NPGPT_VLEN == 8
    return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}
NPGPT_INLINE Vec vmin(Vec a, Vec b) {
#if NPGPT_VLEN == 8
    return (Vec)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return a < b ? a : b;
#endif
}
NPGPT_INLINE Vec to_float(IVec x) {
#if NPGPT_VLEN == 8
    return (Vec)_mm256_cvtepi32_ps((__m256i)x);
#else
    return __builtin_convertvector(x, Vec);
#endif
}
NPGPT_INLINE Vec select(IVec mask, Vec yes, Vec no) { return mask ? yes : no; }

// The last n < VLEN elements of a row, without touching what lies behind them.
NPGPT_INLINE Vec load_part(const float* p, Index n) {
    float lane[VLEN];
    for (Index i = 0; i < VLEN; i++) lane[i] = i < n ? p[i] : 0.0f;
    return load(lane);
}
NPGPT_INLINE void store_part(float* p, Vec x, Index n) {
    for (Index i = 0; i < n; i++) p[i] = x[i];
}

// Sum and maximum of the lanes, by halves: a fixed order.
NPGPT_INLINE float reduce_add(Vec x) {
#if NPGPT_VLEN == 8
    __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
#else
    return (x[0] + x[2]) + (x[1] + x[3]);
#endif
}
// Of four vectors at once: y[i] = reduce_add(x[i]), to the bit
NPGPT_INLINE void reduce_add4(float* y, const Vec x[4]) {
#if NPGPT_VLEN == 8
    __m128 h[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        h[i] = _mm_add_ps(_mm256_castps256_ps128((__m256)x[i]), _mm256_extractf128_ps((__m256)x[i], 1));
    const __m128 a = _mm_add_ps(_mm_unpacklo_ps(h[0], h[1]), _mm_unpackhi_ps(h[0], h[1]));
    const __m128 b = _mm_add_ps(_mm_unpacklo_ps(h[2], h[3]), _mm_unpackhi_ps(h[2], h[3]));
    _mm_storeu_ps(y, _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a)));
#else
    for (int i = 0; i < 4; i++) y[i] = reduce_add(x[i]);
#endif
}
NPGPT_INLINE float reduce_max(Vec x) {
#if NPGPT_VLEN == 8
    __m128 half = _mm_max_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
#else
    const float even = x[0] > x[2] ? x[0] : x[2], odd = x[1] > x[3] ? x[1] : x[3];
    return even > odd ? even : odd;
#endif
}

// e^x for x in [-87.3, 88.3], with an error of at most 1.1 ulp (1.4 without FMA); elsewhere the bits mean nothing.
// x = n ln 2 + r with |r| <= ln 2 / 2; e^r = 1 + r q(r), q of degree 5 with the least greatest relative error (2e-9);
// n is added to the exponent's bits.
NPGPT_INLINE Vec exp_in_range(Vec x) {
    const Vec magic = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    Vec t = fma(x, set1(1.44269504f), magic);
    Vec n = t - magic;
    Vec r = fma(n, set1(-0.693359375f), x);  // ln 2 in two parts: n times the first is exact
    r = fma(n, set1(2.12194440e-4f), r);
    Vec q = set1(1.384364441e-3f);
    q = fma(q, r, set1(8.374163881e-3f));
    q = fma(q, r, set1(4.166800156e-2f));
    q = fma(q, r, set1(1.666643173e-1f));
    q = fma(q, r, set1(4.999999404e-1f));
    q = fma(q, r, set1(1.0f));
    return (Vec)((IVec)fma(q, r, set1(1.0f)) + ((IVec)t << 23));
}

// e^x everywhere: 0 below -87.3, infinity above 88.3, NaN stays NaN.
NPGPT_INLINE Vec vexp(Vec x) {
    const Vec y = select(x < set1(-87.3f), set1(0.0f), exp_in_range(x));
    return select(x <= set1(88.3f), y, x + set1(__builtin_inff()));
}

// gelu(x) = x s and gelu'(x) = s + 2 x s (1 - s) z' with s = 1 / (1 + e^(-2z)), z = sqrt(2/pi) (x + 0.044715 x^3).
// Beyond 9.9 on either side s is 1 or below 1e-37: x is held there, so that no exponential leaves its range. NaN passes.
// e^(-2z) = 2^n 2^r with |r| <= 1/2, 2^r = 1 + r q(r): q of degree 4 is off by 9e-8 at most, of which s, being 1 / (1 + it),
// keeps a quarter; and reducing to r costs no multiplications, which are what limits here.
NPGPT_INLINE Vec gelu_gate(Vec x) {  // x in [-9.9, 9.9]
    constexpr float scale = -2 * 0.79788456f * 1.44269504f;
    const Vec magic = set1(12582912.0f), power = x * fma(x * x, set1(scale * 0.044715f), set1(scale));
    const Vec t = power + magic, r = power - (t - magic);
    Vec q = set1(1.326472695e-3f);
    q = fma(q, r, set1(9.671512898e-3f));
    q = fma(q, r, set1(5.550733746e-2f));
    q = fma(q, r, set1(2.402224208e-1f));
    q = fma(q, r, set1(6.931469776e-1f));
    const Vec e = (Vec)((IVec)fma(q, r, set1(1.0f)) + ((IVec)t << 23));
    return set1(1.0f) / (set1(1.0f) + e);
}
NPGPT_INLINE Vec vgelu(Vec x) {
    x = vmax(set1(-9.9f), x);
    return x * gelu_gate(vmin(set1(9.9f), x));
}
// y = gelu(x) and the slope there, from one exponential
NPGPT_INLINE Vec gelu_slope(Vec x, Vec* y) {
    const Vec c = set1(2 * 0.79788456f), d = set1(2 * 0.79788456f * 3 * 0.044715f);
    x = vmax(set1(-9.9f), x);
    const Vec held = vmin(set1(9.9f), x), s = gelu_gate(held);
    *y = x * s;
    return fma(s * (set1(1.0f) - s), held * fma(held * held, d, c), s);
}

// The exact GELU: x Phi(x), and Phi(x) + x phi(x), phi the density and Phi the distribution of N(0, 1).
// 2 Phi(-|x|) = erfc(z) = e^(-z^2) t q(t) with z = |x| / sqrt(2), t = 1 / (1 + 0.325 z): q of degree 7 fits to 5e-8.
// Beyond 13 e^(-z^2) leaves its range and Phi is 0 or 1: x is held there.
NPGPT_INLINE Vec erf_gelu_slope(Vec x, Vec* y) {
    x = vmax(set1(-13.0f), x);
    const Vec held = vmin(set1(13.0f), x), size = vmax(held, -held), e = exp_in_range(held * held * set1(-0.5f));
    const Vec t = set1(1.0f) / fma(size, set1(0.22980970f), set1(1.0f));
    Vec q = set1(-0.154152201f);
    q = fma(q, t, set1(0.567459732f));
    q = fma(q, t, set1(-0.523822984f));
    q = fma(q, t, set1(0.560031962f));
    q = fma(q, t, set1(-0.0318454896f));
    q = fma(q, t, set1(0.222234168f));
    q = fma(q, t, set1(0.176292221f));
    q = fma(q, t, set1(0.18380258f));
    const Vec tail = set1(0.5f) * e * t * q;
    const Vec phi = select(held < set1(0.0f), tail, set1(1.0f) - tail);
    *y = x * phi;
    return fma(held * set1(0.39894228f), e, phi);
}

}  // namespace NPGPT_ISA
}  // namespace npgpt
