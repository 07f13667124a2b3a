// Operations on elements: GELU, SwiGLU, rotary positions, sums, dropout, AdamW.

namespace npgpt {
namespace NPGPT_ISA {

static void gelu_forward(float* y, const float* x, Index n) {
    Index i = 0;
    for (; i + VLEN <= n; i += VLEN) store(y + i, vgelu(load(x + i)));
    if (i < n) store_part(y + i, vgelu(load_part(x + i, n - i)), n - i);
}

static void gelu_backward(float* dx, const float* dy, const float* x, Index n) {
    Vec y;
    Index i = 0;
    for (; i + VLEN <= n; i += VLEN) store(dx + i, load(dy + i) * gelu_slope(load(x + i), &y));
    if (i < n) store_part(dx + i, load_part(dy + i, n - i) * gelu_slope(load_part(x + i, n - i), &y), n - i);
}

static void erf_gelu_forward(float* y, const float* x, Index n) {
    Vec gelu;
    Index i = 0;
    for (; i + VLEN <= n; i += VLEN) erf_gelu_slope(load(x + i), &gelu), store(y + i, gelu);
    if (i < n) erf_gelu_slope(load_part(x + i, n - i), &gelu), store_part(y + i, gelu, n - i);
}

static void erf_gelu_backward(float* dx, const float* dy, const float* x, Index n) {
    Vec y;
    Index i = 0;
    for (; i + VLEN <= n; i += VLEN) store(dx + i, load(dy + i) * erf_gelu_slope(load(x + i), &y));
    if (i < n) store_part(dx + i, load_part(dy + i, n - i) * erf_gelu_slope(load_part(x + i, n - i), &y), n - i);
}

NPGPT_INLINE Vec vsigmoid(Vec u) { return set1(1) / (set1(1) + vexp(-u)); }

static void swiglu_forward(float* y, const float* h, Index rows, Index F) {
    for (Index i = 0; i < rows; i++, y += F, h += 2 * F) {
        const float* v = h + F;
        Index j = 0;
        for (; j + VLEN <= F; j += VLEN) store(y + j, load(h + j) * vsigmoid(load(h + j)) * load(v + j));
        if (j < F) {
            const Vec u = load_part(h + j, F - j);
            store_part(y + j, u * vsigmoid(u) * load_part(v + j, F - j), F - j);
        }
    }
}

NPGPT_INLINE void swiglu_slopes(Vec dy, Vec u, Vec v, Vec* du, Vec* dv) {
    const Vec s = vsigmoid(u), one = set1(1);
    *du = dy * v * s * (one + u * (one - s));
    *dv = dy * u * s;
}

static void swiglu_backward(float* dh, const float* dy, const float* h, Index rows, Index F) {
    for (Index i = 0; i < rows; i++, dy += F, h += 2 * F, dh += 2 * F) {
        Vec du, dv;
        Index j = 0;
        for (; j + VLEN <= F; j += VLEN) {
            swiglu_slopes(load(dy + j), load(h + j), load(h + F + j), &du, &dv);
            store(dh + j, du);
            store(dh + F + j, dv);
        }
        if (j < F) {
            swiglu_slopes(load_part(dy + j, F - j), load_part(h + j, F - j), load_part(h + F + j, F - j), &du, &dv);
            store_part(dh + j, du, F - j);
            store_part(dh + F + j, dv, F - j);
        }
    }
}

static void rotate(float* x, Index heads, Index half, const float* cosine, const float* sine, float direction) {
    const Vec vd = set1(direction);
    for (Index head = 0; head < heads; head++, x += 2 * half) {
        float* second = x + half;
        Index j = 0;
        for (; j + VLEN <= half; j += VLEN) {
            const Vec x1 = load(x + j), x2 = load(second + j), c = load(cosine + j), s = load(sine + j) * vd;
            store(x + j, x1 * c - x2 * s);
            store(second + j, x2 * c + x1 * s);
        }
        for (; j < half; j++) {
            const float x1 = x[j], x2 = second[j], c = cosine[j], s = sine[j] * direction;
            x[j] = x1 * c - x2 * s;
            second[j] = x2 * c + x1 * s;
        }
    }
}

static void add(float* y, const float* x, Index n) {
    for (Index i = 0; i < n; i++) y[i] += x[i];
}

static void sum(float* y, const float* a, const float* b, Index n) {
    for (Index i = 0; i < n; i++) y[i] = a[i] + b[i];
}

static void sum_rows(float* db, const float* dy, Index ld, Index rows, Index n) {
    constexpr Index BLOCK = 64;  // rows: a short sum first, so that a long one keeps its precision
    for (Index begin = 0; begin < rows; begin += BLOCK) {
        const Index end = begin + BLOCK < rows ? begin + BLOCK : rows;
        Index j = 0;
        for (; j + 4 * VLEN <= n; j += 4 * VLEN) {
            Vec acc[4] = {};
            for (Index i = begin; i < end; i++)
#pragma GCC unroll 4
                for (int q = 0; q < 4; q++) acc[q] += load(dy + i * ld + j + q * VLEN);
#pragma GCC unroll 4
            for (int q = 0; q < 4; q++) store(db + j + q * VLEN, load(db + j + q * VLEN) + acc[q]);
        }
        for (; j < n; j++) {
            float acc = 0;
            for (Index i = begin; i < end; i++) acc += dy[i * ld + j];
            db[j] += acc;
        }
    }
}

typedef uint64_t Words __attribute__((vector_size(4 * NPGPT_VLEN)));  // 32-bit words, each in a lane of 64
typedef uint32_t UVec __attribute__((vector_size(4 * NPGPT_VLEN)));

NPGPT_INLINE Words multiply_words(Words a, uint32_t b) {
#if NPGPT_VLEN == 8
    return (Words)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#else
    return a * uint64_t(b);
#endif
}

// Philox 4x32-10 (Salmon et al. 2011): four words for each counter c and the key. Several vectors of counters at once,
// as each round waits for its products.
constexpr Index COUNTERS = VLEN / 2, ABREAST_PHILOX = 4;
NPGPT_INLINE void philox4x32(Words c[4][ABREAST_PHILOX], uint32_t k0, uint32_t k1) {
    const Words low = Words{} + 0xFFFFFFFFu;
    for (int round = 0; round < 10; round++) {
#pragma GCC unroll 4
        for (Index q = 0; q < ABREAST_PHILOX; q++) {
            const Words product0 = multiply_words(c[0][q], 0xD2511F53u),
                        product1 = multiply_words(c[2][q], 0xCD9E8D57u);
            c[0][q] = (product1 >> 32) ^ c[1][q] ^ uint64_t(k0);
            c[2][q] = (product0 >> 32) ^ c[3][q] ^ uint64_t(k1);
            c[1][q] = product1 & low;
            c[3][q] = product0 & low;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

static void philox(uint32_t* words, const uint32_t* counter, const uint32_t* key) {
    Words c[4][ABREAST_PHILOX];
    for (int i = 0; i < 4; i++)
        for (Index q = 0; q < ABREAST_PHILOX; q++) c[i][q] = Words{} + uint64_t(counter[i]);
    philox4x32(c, key[0], key[1]);
    for (int i = 0; i < 4; i++) words[i] = uint32_t(c[i][0][0]);
}

static void dropout(float* y, const float* x, const uint32_t* key, uint32_t sample, uint32_t threshold, float scale,
                    Index begin, Index end) {
    constexpr Index GROUPS = ABREAST_PHILOX * COUNTERS;  // of four elements
    Words c[4][ABREAST_PHILOX], lane = {};
    for (Index g = 0; g < COUNTERS; g++) lane[g] = g;
    for (Index first = begin / 4; first * 4 < end; first += GROUPS) {
#pragma GCC unroll 4
        for (Index q = 0; q < ABREAST_PHILOX; q++) {
            c[0][q] = (lane + uint64_t(first + q * COUNTERS)) & 0xFFFFFFFFu;
            c[1][q] = Words{} + uint64_t(sample);
            c[2][q] = Words{} + uint64_t(key[2]);
            c[3][q] = Words{} + uint64_t(key[3]);
        }
        philox4x32(c, key[0], key[1]);
        uint64_t words[2 * GROUPS];  // two at a time, in the order of elements
#pragma GCC unroll 4
        for (Index q = 0; q < ABREAST_PHILOX; q++) {
            const Words low = c[0][q] | c[1][q] << 32, high = c[2][q] | c[3][q] << 32;
#pragma GCC unroll 4
            for (Index g = 0; g < COUNTERS; g++) {
                words[2 * (q * COUNTERS + g)] = low[g];
                words[2 * (q * COUNTERS + g) + 1] = high[g];
            }
        }
        float factor[4 * GROUPS];
#pragma GCC unroll 8
        for (Index i = 0; i < 4 * GROUPS; i += VLEN) {
            UVec word;
            __builtin_memcpy(&word, words + i / 2, sizeof(word));
            store(factor + i, select((IVec)(word >= threshold), set1(scale), Vec{}));
        }
        const Index from = first * 4 < begin ? begin - first * 4 : 0;
        const Index to = end - first * 4 < 4 * GROUPS ? end - first * 4 : 4 * GROUPS;
        Index i = from;
        for (; i + VLEN <= to; i += VLEN) store(y + first * 4 + i, load(x + first * 4 + i) * load(factor + i));
        for (; i < to; i++) y[first * 4 + i] = x[first * 4 + i] * factor[i];
    }
}

static double square_sum(const float* g, Index n) {
    double lane[8] = {};  // eight running sums: short dependency chains, one fixed order
    Index i = 0;
    for (; i + 8 <= n; i += 8)
#pragma GCC unroll 8
        for (Index q = 0; q < 8; q++) lane[q] += double(g[i + q]) * double(g[i + q]);
    for (; i < n; i++) lane[0] += double(g[i]) * double(g[i]);
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

static void adamw(float* p, float* g, float* m, float* v, Index n, const AdamW& s) {
    const float rate = s.lr / s.correction1, inverse = 1 / s.sqrt_correction2, keep = 1 - s.decay;
    for (Index i = 0; i < n; i++) {
        float gi = g[i] * s.grad_scale;
        float mi = m[i] + (1 - s.beta1) * (gi - m[i]);
        float vi = v[i] + (1 - s.beta2) * (gi * gi - v[i]);
        p[i] = p[i] * keep - rate * mi / (__builtin_sqrtf(vi) * inverse + s.eps);
        m[i] = mi;
        v[i] = vi;
        g[i] = 0;
    }
}

}  // namespace NPGPT_ISA
}  // namespace npgpt
