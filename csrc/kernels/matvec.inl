// Products of a few rows of x with weights of plain types, each weight read once: decoding, which memory limits. int8.inl has
// the products of blocks.
//
// A row of weights becomes vectors of floats in registers and meets all rows of x there. Each pair of the two has one
// accumulator that runs over k in order: no result depends on how many rows of either kind are taken at a time.

namespace npgpt {
namespace NPGPT_ISA {

typedef uint16_t Halves __attribute__((vector_size(2 * NPGPT_VLEN)));

NPGPT_INLINE Vec load_half(const uint8_t* p) {
#if NPGPT_VLEN == 8
    return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
    Halves h;
    __builtin_memcpy(&h, p, sizeof(h));
    const IVec bits = __builtin_convertvector(h, IVec), rest = bits & 0x7FFF;
    // The exponent moves from a bias of 15 to one of 127; subnormals by way of an integer, as those may be flushed here.
    const IVec normal = (rest << 13) + (112 << 23) + ((IVec)(rest >= 0x7C00) & (112 << 23));
    const Vec small = __builtin_convertvector(rest, Vec) * set1(5.9604644775390625e-8f);  // 2^-24
    return (Vec)((IVec)select(rest < 0x400, small, (Vec)normal) | (bits >> 15 << 31));
#endif
}
NPGPT_INLINE float half_at(const uint8_t* p) {
    uint16_t h;
    __builtin_memcpy(&h, p, sizeof(h));
#if NPGPT_VLEN == 8
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h)));
#else
    const uint32_t rest = h & 0x7FFF, bits = (rest << 13) + ((rest >= 0x7C00 ? 224u : 112u) << 23);
    float size = float(rest) * 5.9604644775390625e-8f;  // 2^-24: subnormal
    if (rest >= 0x400) __builtin_memcpy(&size, &bits, sizeof(size));
    return h >> 15 ? -size : size;
#endif
}
NPGPT_INLINE Vec load_bfloat(const uint8_t* p) {  // the upper half of a float
#if NPGPT_VLEN == 8
    return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16);
#else
    Halves h;
    __builtin_memcpy(&h, p, sizeof(h));
    return (Vec)(__builtin_convertvector(h, IVec) << 16);
#endif
}

// VLEN signed bytes as integers
NPGPT_INLINE IVec load_int8(const int8_t* p) {
#if NPGPT_VLEN == 8
    return (IVec)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
    return IVec{p[0], p[1], p[2], p[3]};
#endif
}

// The plain types by 32 numbers, BYTES bytes: at(v) is vector v.
constexpr int VECTORS = 32 / VLEN;
constexpr int UNROLLED = VLEN == 8 ? VECTORS : 1;  // at a time: SSE2's way from halves is long
struct FloatBlock {
    static constexpr Index BYTES = 128;
    const uint8_t* p;
    NPGPT_METHOD Vec at(int v) const { return load(reinterpret_cast<const float*>(p) + v * VLEN); }
};
struct HalfBlock {
    static constexpr Index BYTES = 64;
    const uint8_t* p;
    NPGPT_METHOD Vec at(int v) const { return load_half(p + 2 * v * VLEN); }
};
struct BfloatBlock {
    static constexpr Index BYTES = 64;
    const uint8_t* p;
    NPGPT_METHOD Vec at(int v) const { return load_bfloat(p + 2 * v * VLEN); }
};

// n <= VLEN products of a row of numbers that is no whole number of blocks
template <class W>
static __attribute__((noinline)) Vec last_products(const float* x, const uint8_t* w, Index n) {
    uint8_t last[W::BYTES] = {};
    __builtin_memcpy(last, w, n * W::BYTES / 32);
    return W{last}.at(0) * load_part(x, n);
}

// y (RX,RW) with stride RW = x (RX,K) times RW rows of weights
template <class W, int RW, int RX>
static void dots(float* y, const float* x, Index ldx, const uint8_t* w, Index row_bytes, Index K) {
    Vec acc[RW][RX], sum[RW][RX];
#pragma GCC unroll 8
    for (int r = 0; r < RW; r++)
#pragma GCC unroll 8
        for (int m = 0; m < RX; m++) acc[r][m] = Vec{};
    Index k = 0;
    for (; k + 32 <= K; k += 32, w += W::BYTES, x += 32) {
        W rows[RW];
#pragma GCC unroll 8
        for (int r = 0; r < RW; r++) {
            rows[r] = W{w + r * row_bytes};
            if (RX > 1) __builtin_prefetch(w + r * row_bytes + RW * row_bytes);
            if (RW == 4)  // small matrices: what comes next is in the last cache at best
                for (Index ahead = 0; ahead < W::BYTES; ahead += 64)
                    __builtin_prefetch(w + r * row_bytes + 4096 + ahead);
        }
        const auto add_products = [&](int v) __attribute__((always_inline)) {
#pragma GCC unroll 8
            for (int r = 0; r < RW; r++) {
                const Vec weights = rows[r].at(v);
#pragma GCC unroll 8
                for (int m = 0; m < RX; m++) {
                    const Vec x_v = load(x + m * ldx + v * VLEN);
                    sum[r][m] = v ? fma(weights, x_v, sum[r][m]) : weights * x_v;
                }
            }
        };
        add_products(0);
#pragma GCC unroll UNROLLED
        for (int v = 1; v < VECTORS; v++) add_products(v);
#pragma GCC unroll 8
        for (int r = 0; r < RW; r++)
#pragma GCC unroll 8
            for (int m = 0; m < RX; m++) acc[r][m] += sum[r][m];
    }
    for (; k < K; k += VLEN, w += W::BYTES / VECTORS, x += VLEN)
#pragma GCC unroll 8
        for (int r = 0; r < RW; r++)
#pragma GCC unroll 8
            for (int m = 0; m < RX; m++)
                acc[r][m] += last_products<W>(x + m * ldx, w + r * row_bytes, minimum(VLEN, K - k));
    if constexpr (RW == 4 && RX == 1) return reduce_add4(y, acc[0]);
#pragma GCC unroll 8
    for (int r = 0; r < RW; r++)
#pragma GCC unroll 8
        for (int m = 0; m < RX; m++) y[m * RW + r] = reduce_add(acc[r][m]);
}

static __attribute__((noinline)) void put(float* y, const float* part, Index n, bool add, const float* bias) {
    for (Index i = 0; i < n; i++) y[i] = (add ? y[i] + part[i] : part[i]) + (bias ? bias[i] : 0);
}

NPGPT_INLINE void put4(float* y, const float* part, bool add, const float* bias) {
    typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
    Four sum = *reinterpret_cast<const Four*>(part);
    if (add) sum = *reinterpret_cast<Four*>(y) + sum;
    if (bias) sum += *reinterpret_cast<const Four*>(bias);
    *reinterpret_cast<Four*>(y) = sum;
}

// dots() of one type: all that matvec_rows needs to know of it
struct Dots {
    using Function = void (*)(float* y, const float* x, Index ldx, const uint8_t* w, Index row_bytes, Index K);
    Function four_by_one, two_by[4];  // rows of weights by rows of x
};
template <class W>
static constexpr Dots dots_of = {dots<W, 4, 1>, {nullptr, dots<W, 2, 1>, dots<W, 2, 2>, dots<W, 2, 3>}};

// One row of x takes the rows of weights one by one from either half: memory is read fastest in two streams, which the
// hardware sees by itself. What lies in cache is taken four rows at a time.
constexpr Index IN_CACHE = 512 << 10;  // bytes: a matrix that is likely to be there from the last token
static void matvec_rows(const Dots& dots, float* y, Index ldy, const float* x, Index ldx, const Matrix& w, Index first,
                        Index count, Index M, bool add, const float* bias) {
    const Index bytes = row_bytes(w.type, w.K), K = w.K;
    const uint8_t* row = static_cast<const uint8_t*>(w.data) + first * bytes;
    const auto bias_at = [&](Index i) { return bias ? bias + i : nullptr; };
    Index i = 0;
    if (M == 1 && bytes * w.N <= IN_CACHE)
        for (float part[4]; i + 4 <= count; i += 4) {
            dots.four_by_one(part, x, ldx, row + i * bytes, bytes, K);
            put4(y + i, part, add, bias_at(i));
        }
    else if (M == 1) {
        const Index half = count / 2;
        for (float part[2]; i < half; i++) {
            dots.two_by[1](part, x, ldx, row + i * bytes, half * bytes, K);
            put(y + i, part, 1, add, bias_at(i));
            put(y + half + i, part + 1, 1, add, bias_at(half + i));
        }
        i *= 2;
    }
    // Two rows of weights, or one, which is taken twice, by three rows of x, or what is left
    for (; i < count; i += 2) {
        const Index rows = minimum(2, count - i);
        for (Index m = 0, n; m < M; m += n) {
            n = minimum(3, M - m);
            float part[3 * 2];
            dots.two_by[n](part, x + m * ldx, ldx, row + i * bytes, rows == 2 ? bytes : 0, K);
            for (Index r = 0; r < n; r++) put(y + (m + r) * ldy + i, part + r * 2, rows, add, bias_at(i));
        }
    }
}

// y (count) += rows k .. k + ROWS of w (K,N), times x: each output adds its products in the order of k
template <int ROWS>
NPGPT_INLINE void add_rows(float* y, const float* x, const float* w, Index stride, Index count) {
    Vec x_k[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) x_k[r] = set1(x[r]);
    for (Index j = 0; j < count; j += VLEN) {
        Vec sum = load(y + j);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) sum = fma(x_k[r], load(w + r * stride + j), sum);
        store(y + j, sum);
    }
}

// y (STRIP) = x (K) times a strip (K,STRIP), in the same order
static void whole_strip(float* y, const float* x, const float* strip, Index K) {
    Vec sum[STRIP / VLEN] = {};
    for (Index k = 0; k < K; k++, strip += STRIP) {
        const Vec x_k = set1(x[k]);
#pragma GCC unroll 8
        for (Index v = 0; v < STRIP / VLEN; v++) sum[v] = fma(x_k, load(strip + v * VLEN), sum[v]);
    }
    for (Index v = 0; v < STRIP / VLEN; v++) store(y + v * VLEN, sum[v]);
}

// y (M,count) = or += x (M,K) times count of the `room` columns that lie side by side from `columns` on
static void columns_of_strip(float* y, Index ldy, const float* x, Index ldx, const float* columns, Index stride,
                             Index room, Index K, Index count, Index M, bool add, const float* bias) {
    constexpr Index WIDE = 1536;  // y stays in L1
    float part[MR * NR > WIDE ? MR * NR : WIDE];
    Index j = 0;
    if (M == 1 && count == STRIP && stride == STRIP) {
        whole_strip(part, x, columns, K);
        put(y, part, STRIP, add, bias);
        return;
    }
    if (M == 1)
        for (Index n; (n = minimum(WIDE, count - j) / VLEN * VLEN) > 0; j += n) {
            for (Index c = 0; c < n; c++) part[c] = 0;
            Index k = 0;
            for (; k + 8 <= K; k += 8) add_rows<8>(part, x + k, columns + k * stride + j, stride, n);
            for (; k < K; k++) add_rows<1>(part, x + k, columns + k * stride + j, stride, n);
            put(y + j, part, n, add, bias ? bias + j : nullptr);
        }
    for (; j < count; j += NR) {
        const Index n = minimum(NR, count - j);
        for (Index m = 0; m < M; m += MR) {
            const Index rows = minimum(MR, M - m);
            if (j + NR <= room)
                tiles[rows](part, NR, x + m * ldx, ldx, 1, columns + j, stride, K, NR, false, nullptr, 0, 0);
            else  // the last columns: what lies behind a row's end is the next row, and behind the last one nothing
                for (Index r = 0; r < rows; r++)
                    for (Index c = 0; c < n; c++) {
                        Vec sum = Vec{};  // rounded as in a tile
                        for (Index k = 0; k < K; k++)
                            sum = fma(set1(x[(m + r) * ldx + k]), set1(columns[k * stride + j + c]), sum);
                        part[r * NR + c] = sum[0];
                    }
            for (Index r = 0; r < rows; r++)
                put(y + (m + r) * ldy + j, part + r * NR, n, add, bias ? bias + j : nullptr);
        }
    }
}

static void matvec_columns(float* y, Index ldy, const float* x, Index ldx, const Matrix& w, Index first, Index count,
                           Index M, bool add, const float* bias) {
    for (Index j = 0, n; j < count; j += n) {
        const Index room = w.strip - (first + j) % w.strip;
        n = minimum(room, count - j);
        columns_of_strip(y + j, ldy, x, ldx, column(w, 0, first + j), w.strip, room, w.K, n, M, add,
                         bias ? bias + j : nullptr);
    }
}

static void matvec(float* y, Index ldy, const float* x, Index ldx, const Matrix& w, Index first, Index count, Index M,
                   bool add, const float* bias) {
    if (bias) bias += first;
    switch (w.type) {
        case F32: matvec_rows(dots_of<FloatBlock>, y, ldy, x, ldx, w, first, count, M, add, bias); break;
        case F16: matvec_rows(dots_of<HalfBlock>, y, ldy, x, ldx, w, first, count, M, add, bias); break;
        case BF16: matvec_rows(dots_of<BfloatBlock>, y, ldy, x, ldx, w, first, count, M, add, bias); break;
        case COLUMNS: matvec_columns(y, ldy, x, ldx, w, first, count, M, add, bias); break;
        default: break;  // matvec_int8's
    }
}

// y (n) = numbers [k, k + n) of a row
template <class W>
static void unpack(float* y, const uint8_t* row, Index k, Index n) {
    const uint8_t* p = row + k * W::BYTES / 32;
    Index i = 0;
    for (; i + 32 <= n; i += 32, p += W::BYTES)
#pragma GCC unroll UNROLLED
        for (int v = 0; v < VECTORS; v++) store(y + i + v * VLEN, W{p}.at(v));
    for (; i < n; i += VLEN, p += W::BYTES / VECTORS) {
        const Index rest = minimum(VLEN, n - i);
        float one[VLEN];
        for (float& x : one) x = 1;
        store_part(y + i, last_products<W>(one, p, rest), rest);
    }
}

}  // namespace NPGPT_ISA
}  // namespace npgpt
