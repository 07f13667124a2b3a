// Products of x with weights of Q8_0 and Q4_0, of integers: x is rounded to blocks of int8 as Q8_0's are.
//
// GROUP rows of weights meet a row of x at a time. A word is four numbers side by side; the words of a block are
// transposed, so that a lane is a row of weights and its sum an output. The integers are exact, and each output adds its
// scaled blocks in order: whatever is computed together, on any number of threads, an output has the same bits.

namespace npgpt {
namespace NPGPT_ISA {

constexpr Index GROUP = VLEN;

#if NPGPT_VLEN == 8

typedef __m256i Bytes;  // a word of each row

// Four words of eight rows, 16 bytes apart from `p` in each; rows behind the last are the last again
NPGPT_INLINE void four_words(Bytes w[4], const uint8_t* p, Index stride, Index last) {
    Bytes r[4];
#pragma GCC unroll 4
    for (Index i = 0; i < 4; i++) {
        const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + (i < last ? i : last) * stride));
        const uint8_t* high = p + (i + 4 < last ? i + 4 : last) * stride;
        r[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(low),
                                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(high)), 1);
    }
    const Bytes a = _mm256_unpacklo_epi32(r[0], r[1]), b = _mm256_unpacklo_epi32(r[2], r[3]);
    const Bytes c = _mm256_unpackhi_epi32(r[0], r[1]), d = _mm256_unpackhi_epi32(r[2], r[3]);
    w[0] = _mm256_unpacklo_epi64(a, b), w[1] = _mm256_unpackhi_epi64(a, b);
    w[2] = _mm256_unpacklo_epi64(c, d), w[3] = _mm256_unpackhi_epi64(c, d);
}

NPGPT_INLINE Vec eight_scales(const uint8_t* p, Index stride, Index last) {
    uint16_t h[8];
#pragma GCC unroll 8
    for (Index i = 0; i < 8; i++) __builtin_memcpy(h + i, p + (i < last ? i : last) * stride, 2);
    return (Vec)_mm256_cvtph_ps(_mm_setr_epi16(short(h[0]), short(h[1]), short(h[2]), short(h[3]), short(h[4]),
                                               short(h[5]), short(h[6]), short(h[7])));
}

NPGPT_INLINE __m256i word_of(const Int8Block& x, int i) {
    int32_t word;
    __builtin_memcpy(&word, x.q + 4 * i, 4);
    return _mm256_set1_epi32(word);
}

// `offset` times the sum of q: what each weight stored with -offset more than it is counts too much
NPGPT_INLINE __m256i times_sums(const Int8Block& x, int16_t offset) {
    int32_t both;
    __builtin_memcpy(&both, x.sums, 4);
    return _mm256_madd_epi16(_mm256_set1_epi32(both), _mm256_set1_epi16(offset));
}

#ifdef NPGPT_VNNI
NPGPT_INLINE __m256i two_chains(__m256i even, const Bytes w[8], const Int8Block& x) {
    __m256i odd = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        even = _mm256_dpbusd_epi32(even, w[i], word_of(x, i));
        odd = _mm256_dpbusd_epi32(odd, w[i + 1], word_of(x, i + 1));
    }
    return _mm256_add_epi32(even, odd);
}
#endif

// Lane r: the sum of the eight numbers of a[r]
NPGPT_INLINE __m256i sums_of_eight(const __m256i a[8]) {
    __m256i two[4], four[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        two[i] = _mm256_add_epi32(_mm256_unpacklo_epi32(a[2 * i], a[2 * i + 1]),
                                  _mm256_unpackhi_epi32(a[2 * i], a[2 * i + 1]));
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
        four[i] = _mm256_add_epi32(_mm256_unpacklo_epi64(two[2 * i], two[2 * i + 1]),
                                   _mm256_unpackhi_epi64(two[2 * i], two[2 * i + 1]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(four[0], four[1], 0x20),
                            _mm256_permute2x128_si256(four[0], four[1], 0x31));
}

// For one row of x: each row of weights with all of it, summed at the end. Fewer shuffles, the same integers.
struct Q8Rows {
    static constexpr Index BYTES = 34;
    const uint8_t* p;
    Index stride, last;
    Vec scale;
    inline __attribute__((always_inline)) void open(const uint8_t* p_, Index stride_, Index last_) {
        p = p_ + 2, stride = stride_, last = last_;
        scale = eight_scales(p_, stride, last);
    }
    inline __attribute__((always_inline)) __m256i times(const Int8Block& x) const {
        const __m256i x_q = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x.q));
        __m256i products[8];
#pragma GCC unroll 8
        for (Index i = 0; i < 8; i++) {
            const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + (i < last ? i : last) * stride));
#ifdef NPGPT_VNNI
            products[i] = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_xor_si256(w, _mm256_set1_epi8(-128)), x_q);
        }
        return _mm256_add_epi32(sums_of_eight(products), times_sums(x, -128));
#else
            const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x_q, w));
            products[i] = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        }
        return sums_of_eight(products);
#endif
    }
};

struct Q8Words {
    static constexpr Index BYTES = 34;
    using One = Q8Rows;
    Bytes w[8];
    Vec scale;
    inline __attribute__((always_inline)) void open(const uint8_t* p, Index stride, Index last) {
        scale = eight_scales(p, stride, last);
        four_words(w, p + 2, stride, last);
        four_words(w + 4, p + 18, stride, last);
#ifdef NPGPT_VNNI
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) w[i] = _mm256_xor_si256(w[i], _mm256_set1_epi8(-128));  // q + 128, unsigned
#endif
    }
    inline __attribute__((always_inline)) __m256i times(const Int8Block& x) const {
#ifdef NPGPT_VNNI
        __m256i sum = two_chains(times_sums(x, -128), w, x);
#else
        __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {  // |w| times x with w's sign: two such products fit 16 bits
            const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w[i]), _mm256_sign_epi8(word_of(x, i), w[i]));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        }
#endif
        return sum;
    }
};

struct Q4Words {
    static constexpr Index BYTES = 18;
    using One = Q4Words;
    Bytes w[8];  // q + 8, unsigned
    Vec scale;
    inline __attribute__((always_inline)) void open(const uint8_t* p, Index stride, Index last) {
        scale = eight_scales(p, stride, last);
        Bytes both[4];
        four_words(both, p + 2, stride, last);
        const __m256i low = _mm256_set1_epi8(15);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            w[i] = _mm256_and_si256(both[i], low);
            w[4 + i] = _mm256_and_si256(_mm256_srli_epi16(both[i], 4), low);
        }
    }
    inline __attribute__((always_inline)) __m256i times(const Int8Block& x) const {
        __m256i sum = times_sums(x, -8);
#ifdef NPGPT_VNNI
        return two_chains(sum, w, x);
#else
        __m256i pairs = _mm256_maddubs_epi16(w[0], word_of(x, 0));
#pragma GCC unroll 8
        for (int i = 1; i < 8; i++)  // eight times 2 * 15 * 127 fit 16 bits
            pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w[i], word_of(x, i)));
        return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
    }
};

#else  // plain: what the others are held against

struct PlainWords {
    int8_t w[GROUP][32];
    Vec scale;
    inline __attribute__((always_inline)) IVec times(const Int8Block& x) const {
        IVec sums;
        for (Index r = 0; r < GROUP; r++) {
            int32_t sum = 0;
            for (int i = 0; i < 32; i++) sum += int32_t(w[r][i]) * x.q[i];
            sums[r] = sum;
        }
        return sums;
    }
};
struct Q8Words : PlainWords {
    static constexpr Index BYTES = 34;
    using One = Q8Words;
    inline __attribute__((always_inline)) void open(const uint8_t* p, Index stride, Index last) {
        for (Index r = 0; r < GROUP; r++) {
            const uint8_t* block = p + (r < last ? r : last) * stride;
            scale[r] = set1_half(block)[0];
            __builtin_memcpy(w[r], block + 2, 32);
        }
    }
};
struct Q4Words : PlainWords {
    static constexpr Index BYTES = 18;
    using One = Q4Words;
    inline __attribute__((always_inline)) void open(const uint8_t* p, Index stride, Index last) {
        for (Index r = 0; r < GROUP; r++) {
            const uint8_t* block = p + (r < last ? r : last) * stride;
            scale[r] = set1_half(block)[0];
            for (int i = 0; i < 16; i++) {
                w[r][i] = int8_t((block[2 + i] & 15) - 8);
                w[r][16 + i] = int8_t((block[2 + i] >> 4) - 8);
            }
        }
    }
};

#endif

// sums (M,GROUP) = x times the rows from w on; ROWS: M where it is 1, else 0
template <class W, int ROWS>
NPGPT_INLINE void int8_group(float* sums, const Int8Block* x, const uint8_t* w, Index bytes, Index K, Index M,
                             Index last) {
    const Index rows = ROWS ? ROWS : M;
    for (Index m = 0; m < rows; m++) store(sums + m * GROUP, Vec{});
    Vec one = Vec{};
    for (Index k = 0; k < K / 32; k++, w += W::BYTES, x += rows) {
        // What lies 24 kB on, into L2 and in order: eight rows at once are no stream that the hardware would see.
        for (Index ahead = 0; ahead < GROUP * W::BYTES; ahead += 64)
            __builtin_prefetch(w - k * W::BYTES + GROUP * k * W::BYTES + 24576 + ahead, 0, 2);
        W words;
        words.open(w, bytes, last);
        if (ROWS == 1)
            one = fma(to_float((IVec)words.times(x[0])), words.scale * set1(x[0].scale), one);
        else
            for (Index m = 0; m < rows; m++) {
                const Vec scaled = words.scale * set1(x[m].scale);
                store(sums + m * GROUP, fma(to_float((IVec)words.times(x[m])), scaled, load(sums + m * GROUP)));
            }
    }
    if (ROWS == 1) store(sums, one);
}

template <class W>
static void int8_rows(float* y, Index ldy, const Int8Block* x, const Matrix& w, Index first, Index count, Index M,
                      bool add, const float* bias) {
    const Index bytes = row_bytes(w.type, w.K);
    const uint8_t* rows = static_cast<const uint8_t*>(w.data) + first * bytes;
    float sums[128 * GROUP];
    for (Index i = 0; i < count; i += GROUP, rows += GROUP * bytes) {
        const Index n = count - i < GROUP ? count - i : GROUP;
        if (n < GROUP)
            int8_group<W, 0>(sums, x, rows, bytes, w.K, M, n - 1);
        else if (M == 1)
            int8_group<typename W::One, 1>(sums, x, rows, bytes, w.K, M, GROUP - 1);
        else
            int8_group<W, 0>(sums, x, rows, bytes, w.K, M, GROUP - 1);
        for (Index m = 0; m < M; m++) {
            float* out = y + m * ldy + i;
            if (n == GROUP) {
                const Vec so_far = add ? load(out) : Vec{}, more = bias ? load(bias + first + i) : Vec{};
                store(out, so_far + load(sums + m * GROUP) + more);
                continue;
            }
            for (Index r = 0; r < n; r++)
                out[r] = (add ? out[r] : 0.0f) + sums[m * GROUP + r] + (bias ? bias[first + i + r] : 0.0f);
        }
    }
}

static void matvec_int8(float* y, Index ldy, const Int8Block* x, const Matrix& w, Index first, Index count, Index M,
                        bool add, const float* bias) {
    if (w.type == Q8_0)
        int8_rows<Q8Words>(y, ldy, x, w, first, count, M, add, bias);
    else
        int8_rows<Q4Words>(y, ldy, x, w, first, count, M, add, bias);
}

// q[0..32) = the integers of these vectors, which fit; sums of the first 16 and the last
NPGPT_INLINE void put_bytes(Int8Block& block, const IVec* q) {
#if NPGPT_VLEN == 8
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32((__m256i)q[0], (__m256i)q[1]),
                                              _mm256_packs_epi32((__m256i)q[2], (__m256i)q[3]));
    const __m256i in_order = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(block.q), in_order);
#else
    for (int i = 0; i < 32; i++) block.q[i] = int8_t(q[i / VLEN][i % VLEN]);
#endif
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        IVec sum = IVec{};
#pragma GCC unroll 4
        for (int v = 0; v < 16 / VLEN; v++) sum += q[half * 16 / VLEN + v];
        int32_t total = 0;
        for (Index i = 0; i < VLEN; i++) total += sum[i];
        block.sums[half] = int16_t(total);
    }
}

static void round_int8(Int8Block* blocks, const float* x, Index first, Index count, Index M, Index K) {
    constexpr int N = 32 / VLEN;
    for (Index row = 0; row < count; row++)
        for (Index k = 0; k < K / 32; k++, x += 32) {
            Int8Block& block = blocks[k * M + first + row];
            Vec largest = Vec{}, broken = Vec{};
#pragma GCC unroll 8
            for (int v = 0; v < N; v++) {
                const Vec x_v = load(x + v * VLEN);
                largest = vmax(largest, vmax(x_v, -x_v));
                broken += x_v * set1(0);  // NaN where x is not finite, which must not be lost
            }
            const float most = reduce_max(largest), inverse = most > 0 ? 127 / most : 0;
            IVec q[N];
#pragma GCC unroll 8
            for (int v = 0; v < N; v++)  // 1.5 * 2^23 more is an integer in the low bits, of which a byte is kept
                q[v] = (IVec)(load(x + v * VLEN) * set1(inverse) + set1(12582912.0f)) << 24 >> 24;
            put_bytes(block, q);
            block.scale = most / 127 + reduce_add(broken);
            block.sum = block.scale * float(block.sums[0] + block.sums[1]);
        }
}

}  // namespace NPGPT_ISA
}  // namespace npgpt
