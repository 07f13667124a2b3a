// Products of x with weights in ggml's blocks, of integers: x is rounded to blocks of int8 as Q8_0's are.
//
// GROUP rows of weights meet a row of x at a time. A word is four numbers side by side; the words of 32 numbers are transposed,
// so that a lane is a row of weights and its sum an output. The integers are exact, and each output adds its scaled sums in
// order: whatever is computed together, on any number of threads, an output has the same bits.

namespace npgpt {
namespace NPGPT_ISA {

constexpr Index GROUP = VLEN;

#if NPGPT_VLEN == 8

typedef __m256i Bytes;  // a word of each row

// Sixteen bytes of either
NPGPT_INLINE __m256i two_rows(const uint8_t* a, const uint8_t* b) {
    const __m256i first = _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a)));
    return _mm256_inserti128_si256(first, _mm_loadu_si128(reinterpret_cast<const __m128i*>(b)), 1);
}

// Four words of eight rows, 16 bytes from `p` on in each
NPGPT_INLINE void four_words(Bytes w[4], const uint8_t* p, Index stride) {
    Bytes r[4];
#pragma GCC unroll 4
    for (Index i = 0; i < 4; i++) r[i] = two_rows(p + i * stride, p + (i + 4) * stride);
    const Bytes a = _mm256_unpacklo_epi32(r[0], r[1]), b = _mm256_unpacklo_epi32(r[2], r[3]);
    const Bytes c = _mm256_unpackhi_epi32(r[0], r[1]), d = _mm256_unpackhi_epi32(r[2], r[3]);
    w[0] = _mm256_unpacklo_epi64(a, b), w[1] = _mm256_unpackhi_epi64(a, b);
    w[2] = _mm256_unpacklo_epi64(c, d), w[3] = _mm256_unpackhi_epi64(c, d);
}
NPGPT_INLINE void eight_words(Bytes w[8], const uint8_t* p, Index stride) {
    four_words(w, p, stride);
    four_words(w + 4, p + 16, stride);
}
NPGPT_INLINE Bytes one_word(const uint8_t* p, Index stride) {
    int32_t w[8];
#pragma GCC unroll 8
    for (Index i = 0; i < 8; i++) __builtin_memcpy(w + i, p + i * stride, 4);
    return _mm256_setr_epi32(w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]);
}

NPGPT_INLINE Vec eight_halves(const uint8_t* p, Index stride) {
    uint16_t h[8];
#pragma GCC unroll 8
    for (Index i = 0; i < 8; i++) __builtin_memcpy(h + i, p + i * stride, 2);
    return (Vec)_mm256_cvtph_ps(_mm_setr_epi16(short(h[0]), short(h[1]), short(h[2]), short(h[3]), short(h[4]),
                                               short(h[5]), short(h[6]), short(h[7])));
}
// The halves of words, as floats
NPGPT_INLINE void both_halves(Vec& low, Vec& high, Bytes words) {
    const __m256i sorted = _mm256_permute4x64_epi64(
        _mm256_shuffle_epi8(
            words, _mm256_set_epi64x(0x0F0E0B0A07060302, 0x0D0C090805040100, 0x0F0E0B0A07060302, 0x0D0C090805040100)),
        0xD8);
    low = (Vec)_mm256_cvtph_ps(_mm256_castsi256_si128(sorted));
    high = (Vec)_mm256_cvtph_ps(_mm256_extracti128_si256(sorted, 1));
}

NPGPT_INLINE Bytes all(int byte) { return _mm256_set1_epi8(char(byte)); }
// Bits of each byte, `shift` from its lowest, as the lowest
NPGPT_INLINE Bytes bits(Bytes w, Index shift, int mask) {
    return _mm256_and_si256(_mm256_srl_epi16(w, _mm_cvtsi32_si128(int(shift))), all(mask));
}
// w[0..8): the low halves of four words' bytes, then the high ones
NPGPT_INLINE void nibbles(Bytes w[8], const Bytes both[4]) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        w[i] = _mm256_and_si256(both[i], all(15));
        w[4 + i] = _mm256_and_si256(_mm256_srli_epi16(both[i], 4), all(15));
    }
}
NPGPT_INLINE Bytes nonlinear(Bytes nibble) {
    const __m128i values = _mm_load_si128(reinterpret_cast<const __m128i*>(NONLINEAR));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(values), nibble);
}
// w[0..8) += 16 where the bit is set, of 32 bits of each row
NPGPT_INLINE void add_fifth_bits(Bytes w[8], Bytes bits) {
    const Bytes copy = _mm256_set_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0, 0x0C0C0C0C, 0x08080808, 0x04040404, 0);
    const Bytes of_row[2] = {_mm256_slli_epi32(bits, 4), bits}, place = _mm256_set1_epi32(int(0x80402010));
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {  // four bits stand in the high half of a byte, of which each of four bytes takes one
        const Bytes copied = _mm256_shuffle_epi8(of_row[i % 2], _mm256_add_epi8(copy, all(i / 2)));
        w[i] = _mm256_or_si256(w[i], _mm256_min_epu8(_mm256_and_si256(copied, place), all(16)));
    }
}

// The words of x's block
NPGPT_INLINE __m256i word_of(const Int8Block& x, int i) {
    int32_t word;
    __builtin_memcpy(&word, x.q + 4 * i, 4);
    return _mm256_set1_epi32(word);
}
// -OFFSET times the sum of q, or of one of its halves: what weights stored with OFFSET more than they are count too much
template <int OFFSET>
NPGPT_INLINE __m256i less(const Int8Block& x) {
    if constexpr (OFFSET == 0)
        return _mm256_setzero_si256();
    else
        return _mm256_slli_epi32(_mm256_set1_epi32(x.minus_8_sums), __builtin_ctz(OFFSET / 8));
}
template <int OFFSET>
NPGPT_INLINE __m256i less_of_half(const Int8Block& x, int h) {
    int32_t sums;
    __builtin_memcpy(&sums, x.sums, 4);
    return _mm256_madd_epi16(_mm256_set1_epi32(sums), _mm256_set1_epi32(h ? -OFFSET * 65536 : uint16_t(-OFFSET)));
}

// Sums over N words of products of bytes: of unsigned ones, MOST at most, and of signed ones
#ifdef NPGPT_VNNI
template <int N>
NPGPT_INLINE __m256i two_chains(__m256i even, const Bytes* w, const Int8Block& x, int first, Bytes flip) {
    __m256i odd = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int i = 0; i < N; i += 2) {
        even = _mm256_dpbusd_epi32(even, _mm256_xor_si256(w[i], flip), word_of(x, first + i));
        odd = _mm256_dpbusd_epi32(odd, _mm256_xor_si256(w[i + 1], flip), word_of(x, first + i + 1));
    }
    return _mm256_add_epi32(even, odd);
}
#endif
template <int MOST, int N>
NPGPT_INLINE __m256i unsigned_products(__m256i sum, const Bytes* w, const Int8Block& x, int first) {
#ifdef NPGPT_VNNI
    return two_chains<N>(sum, w, x, first, _mm256_setzero_si256());
#else
    constexpr int FIT = 32767 / (254 * MOST) < N ? 32767 / (254 * MOST) / 2 * 2 : N;  // such pairs' sum has 16 bits
    static_assert(N % FIT == 0, "");
#pragma GCC unroll 4
    for (int i = 0; i < N; i += FIT) {
        __m256i pairs = _mm256_maddubs_epi16(w[i], word_of(x, first + i));
#pragma GCC unroll 8
        for (int j = i + 1; j < i + FIT; j++)
            pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w[j], word_of(x, first + j)));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    return sum;
#endif
}
NPGPT_INLINE __m256i signed_products(const Bytes w[8], const Int8Block& x) {
#ifdef NPGPT_VNNI
    return two_chains<8>(less<128>(x), w, x, 0, all(-128));  // w + 128, unsigned
#else
    __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {  // |w| times x with w's sign: two such products fit 16 bits
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w[i]), _mm256_sign_epi8(word_of(x, i), w[i]));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    return sum;
#endif
}

// 32 numbers of eight rows: words q + OFFSET of at most MOST, or, where MOST is 0, signed ones. HALVES: the first sixteen and
// the last have scales (and minima) of their own.
template <WeightType TYPE, int MOST, int OFFSET = 0, bool HAS_MINIMUM = false, bool HAS_HALVES = false>
struct EightRows {
    static constexpr int BIAS = OFFSET;
    static constexpr Index length = BLOCK_SIZES[TYPE].length, bytes = BLOCK_SIZES[TYPE].bytes;
    static constexpr bool MINIMUM = HAS_MINIMUM, HALVES = HAS_HALVES;
    static constexpr int TOGETHER = 1;
    Bytes w[8];
    Vec scale[2], minimum[2];

    NPGPT_METHOD __m256i products(const Int8Block& x) const {
        if constexpr (MOST == 0)
            return signed_products(w, x);
        else
            return unsigned_products<MOST, 8>(less<OFFSET>(x), w, x, 0);
    }
    NPGPT_METHOD void products_of_halves(__m256i sums[2], const Int8Block& x) const {
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++)
            sums[h] = unsigned_products<MOST, 4>(less_of_half<OFFSET>(x, h), w + 4 * h, x, 4 * h);
    }
};
template <class W>
NPGPT_INLINE Vec add_products(const W& words, Vec sum, const Int8Block& x) {
    const Vec x_scale = set1(x.scale);
    if constexpr (W::HALVES) {
        __m256i sums[2];
        words.products_of_halves(sums, x);
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            sum = fma(to_float((IVec)sums[h]), words.scale[h] * x_scale, sum);
            if (W::MINIMUM) sum = fma(words.minimum[h], set1(x.scale * float(x.sums[h])), sum);
        }
        return sum;
    } else {
        sum = fma(to_float((IVec)words.products(x)), words.scale[0] * x_scale, sum);
        return W::MINIMUM ? fma(words.minimum[0], set1(x.sum), sum) : sum;
    }
}

// ---- blocks of 32. part(p, stride, j) opens numbers [32 j, 32 j + 32) of the blocks at p.

struct Q8Words : EightRows<Q8_0, 0> {
    NPGPT_METHOD void part(const uint8_t* p, Index stride, Index) {
        scale[0] = eight_halves(p, stride);
        eight_words(w, p + 2, stride);
    }
};
template <class Base, Index PLACE>
struct Nibbles : Base {  // sixteen bytes, from PLACE on
    static constexpr Index AT = PLACE;
    NPGPT_METHOD void numbers(const uint8_t* p, Index stride) {
        Bytes both[4];
        four_words(both, p + AT, stride);
        nibbles(this->w, both);
    }
};
struct Q4Words : Nibbles<EightRows<Q4_0, 15, 8>, 2> {
    NPGPT_METHOD void scales(const uint8_t* p, Index stride) { scale[0] = eight_halves(p, stride); }
    NPGPT_METHOD void part(const uint8_t* p, Index stride, Index) { scales(p, stride), numbers(p, stride); }
};
struct Q4MinWords : Nibbles<EightRows<Q4_1, 15, 0, true>, 4> {
    NPGPT_METHOD void scales(const uint8_t* p, Index stride) { both_halves(scale[0], minimum[0], one_word(p, stride)); }
    NPGPT_METHOD void part(const uint8_t* p, Index stride, Index) { scales(p, stride), numbers(p, stride); }
};
struct Q5Words : Nibbles<EightRows<Q5_0, 31, 16>, 6> {
    NPGPT_METHOD void part(const uint8_t* p, Index stride, Index) {
        scale[0] = eight_halves(p, stride);
        numbers(p, stride);
        add_fifth_bits(w, one_word(p + 2, stride));
    }
};
struct Q5MinWords : Nibbles<EightRows<Q5_1, 31, 0, true>, 8> {
    NPGPT_METHOD void part(const uint8_t* p, Index stride, Index) {
        both_halves(scale[0], minimum[0], one_word(p, stride));
        numbers(p, stride);
        add_fifth_bits(w, one_word(p + 4, stride));
    }
};
struct NonlinearWords : Nibbles<EightRows<IQ4_NL, 0>, 2> {
    NPGPT_METHOD void part(const uint8_t* p, Index stride, Index) {
        scale[0] = eight_halves(p, stride);
        numbers(p, stride);
#pragma GCC unroll 8
        for (Bytes& word : w) word = nonlinear(word);
    }
};

// ---- the same for one row of x: rows of weights as they lie, whose products are summed at the end. Fewer shuffles, the same
// integers.

// Numbers of two vectors, half and half of each 128 bits added, in turn: a b a b ...
NPGPT_INLINE __m256i fold_16(__m256i a, __m256i b) {
    return _mm256_add_epi16(_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
}
NPGPT_INLINE __m256i fold_32(__m256i a, __m256i b) {
    return _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
}
NPGPT_INLINE __m256i fold_64(__m256i a, __m256i b) {  // of 32 bits: a a b b -> a b
    return _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
}

struct Q8Rows : EightRows<Q8_0, 0> {
    const uint8_t* rows;
    Index stride;
    NPGPT_METHOD void part(const uint8_t* p, Index stride_, Index) {
        rows = p + 2, stride = stride_;
        scale[0] = eight_halves(p, stride);
    }
    NPGPT_METHOD __m256i products(const Int8Block& x) const {
        const __m256i x_q = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x.q));
        __m256i a[8];
#pragma GCC unroll 8
        for (Index i = 0; i < 8; i++) {
            const __m256i q = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + i * stride));
#ifdef NPGPT_VNNI
            a[i] = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_xor_si256(q, all(-128)), x_q);
#else
            const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(x_q, q));
            a[i] = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#endif
        }
        const __m256i first = fold_64(fold_32(a[0], a[1]), fold_32(a[2], a[3]));
        const __m256i last = fold_64(fold_32(a[4], a[5]), fold_32(a[6], a[7]));
        const __m256i sums = _mm256_add_epi32(_mm256_permute2x128_si256(first, last, 0x20),
                                              _mm256_permute2x128_si256(first, last, 0x31));
#ifdef NPGPT_VNNI
        return _mm256_add_epi32(sums, less<128>(x));
#else
        return sums;
#endif
    }
};

template <class Words, int OFFSET>
struct NibbleRows : Words {
    const uint8_t* rows;
    Index stride;
    NPGPT_METHOD void part(const uint8_t* p, Index stride_, Index) {
        rows = p + Words::AT, stride = stride_;
        this->scales(p, stride);
    }
    NPGPT_METHOD __m256i products(const Int8Block& x) const {
        const __m128i* x_q = reinterpret_cast<const __m128i*>(x.q);
        const __m256i x_first = _mm256_broadcastsi128_si256(_mm_loadu_si128(x_q));
        const __m256i x_last = _mm256_broadcastsi128_si256(_mm_loadu_si128(x_q + 1));
        __m256i a[4];
#pragma GCC unroll 4
        for (Index i = 0; i < 4; i++) {
            const __m256i both = two_rows(rows + i * stride, rows + (i + 4) * stride);
            const __m256i low = _mm256_and_si256(both, all(15)),
                          high = _mm256_and_si256(_mm256_srli_epi16(both, 4), all(15));
#ifdef NPGPT_VNNI
            a[i] = _mm256_dpbusd_epi32(_mm256_dpbusd_epi32(_mm256_setzero_si256(), low, x_first), high, x_last);
        }
        const __m256i sums = fold_64(fold_32(a[0], a[1]), fold_32(a[2], a[3]));
#else
            a[i] = _mm256_add_epi16(_mm256_maddubs_epi16(low, x_first), _mm256_maddubs_epi16(high, x_last));
        }
        // sixteen times 15 * 127 fit 16 bits: two of each row are left
        const __m256i b = fold_16(a[0], a[1]), c = fold_16(a[2], a[3]);
        const __m256i two = _mm256_add_epi16(_mm256_unpacklo_epi32(b, c), _mm256_unpackhi_epi32(b, c));
        const __m128i side_by_side = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
        const __m256i sums = _mm256_madd_epi16(_mm256_shuffle_epi8(two, _mm256_broadcastsi128_si256(side_by_side)),
                                               _mm256_set1_epi16(1));
#endif
        return _mm256_add_epi32(sums, less<OFFSET>(x));
    }
};
using Q4Rows = NibbleRows<Q4Words, 8>;
using Q4MinRows = NibbleRows<Q4MinWords, 0>;

// ---- blocks of 256

// Byte `at` of a word, signed, as a float
NPGPT_INLINE Vec float_of_byte(Bytes word, Index at) {
    return to_float((IVec)_mm256_srai_epi32(_mm256_sll_epi32(word, _mm_cvtsi32_si128(int(24 - 8 * at))), 24));
}

// Of each byte of 32, BITS bits from LOW on and HIGH_BITS above them from HIGH on. Bytes are read once at each shift: ABREAST
// times 32 of LOW's together, 32 of HIGH's.
template <class Base, Index LOW, int BITS, Index HIGH = 0, int HIGH_BITS = 0, int ABREAST = 1>
struct KWords : Base {
    static constexpr int TOGETHER = 8 / BITS * ABREAST;  // parts that the same bytes of LOW hold
    static constexpr int LOW_BITS = BITS, ABOVE_BITS = HIGH_BITS, ABOVE_PARTS = HIGH_BITS ? 8 / HIGH_BITS : 1;
    // Where the bytes of part j begin
    static constexpr Index low_at(Index j) { return LOW + (j / TOGETHER * ABREAST + j % ABREAST) * 32; }
    static constexpr Index high_at(Index j) { return HIGH + j / ABOVE_PARTS * 32; }
    // How far from their lowest bit its bits lie
    static constexpr Index low_shift(Index j) { return j % TOGETHER / ABREAST * BITS; }
    static constexpr Index high_shift(Index j) { return j % ABOVE_PARTS * HIGH_BITS; }
    Vec d, minus_dmin = {};
    Bytes scales[4], minima[4] = {};  // a byte for each group; of types without minima the last stay 0
    Bytes low[8 * ABREAST], high[8];

    template <class Words>  // one of the types below
    NPGPT_METHOD static void open(Words& words, const uint8_t* p, Index stride, Index j) {
        if (j == 0) words.begin(p, stride);
        words.numbers(p, stride, j);
        words.scale_groups(j);
    }
    NPGPT_METHOD void numbers(const uint8_t* p, Index stride, Index j) {
        if (j % TOGETHER == 0)
#pragma GCC unroll 2
            for (int i = 0; i < ABREAST; i++) eight_words(low + 8 * i, p + low_at(j + i), stride);
        if (HIGH_BITS && j % ABOVE_PARTS == 0) eight_words(high, p + high_at(j), stride);
        const Bytes* from = low + j % ABREAST * 8;
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            this->w[i] = bits(from[i], low_shift(j), (1 << BITS) - 1);
            if (HIGH_BITS) {
                const Bytes above = bits(high[i], high_shift(j), (1 << HIGH_BITS) - 1);
                this->w[i] = _mm256_or_si256(this->w[i], _mm256_slli_epi16(above, BITS));
            }
        }
    }
    NPGPT_METHOD void scale_groups(Index j) {
        constexpr int GROUPS = Base::HALVES ? 2 : 1;
#pragma GCC unroll 2
        for (int h = 0; h < GROUPS; h++) {
            const Index g = j * GROUPS + h;
            this->scale[h] = d * float_of_byte(scales[g / 4], g % 4);
            this->minimum[h] = minus_dmin * float_of_byte(minima[g / 4], g % 4);
        }
    }
};

template <class Base>
struct SixBitWords : Base {  // Q4_K and Q5_K: eight scales and eight minima in twelve bytes
    NPGPT_METHOD void begin(const uint8_t* p, Index stride) {
        Bytes h[4];
        Vec dmin;
        four_words(h, p, stride);
        both_halves(this->d, dmin, h[0]);
        this->minus_dmin = -dmin;
        this->scales[0] = bits(h[1], 0, 63), this->minima[0] = bits(h[2], 0, 63);
        const Bytes scales = _mm256_and_si256(_mm256_srli_epi16(h[1], 2), all(48));
        const Bytes minima = _mm256_and_si256(_mm256_srli_epi16(h[2], 2), all(48));
        this->scales[1] = _mm256_or_si256(bits(h[3], 0, 15), scales);
        this->minima[1] = _mm256_or_si256(bits(h[3], 4, 15), minima);
    }
    NPGPT_METHOD void part(const uint8_t* p, Index stride, Index j) { this->open(*this, p, stride, j); }
};
using Q4KWords = SixBitWords<KWords<EightRows<Q4_K, 15, 0, true>, 16, 4>>;
using Q5KWords = SixBitWords<KWords<EightRows<Q5_K, 31, 0, true>, 48, 4, 16, 1>>;

struct Q2KWords : KWords<EightRows<Q2_K, 3, 0, true, true>, 16, 2> {
    NPGPT_METHOD void begin(const uint8_t* p, Index stride) {
        Bytes both[4];
        Vec dmin;
        four_words(both, p, stride);
        both_halves(d, dmin, one_word(p + 80, stride));
        minus_dmin = -dmin;
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) scales[i] = bits(both[i], 0, 15), minima[i] = bits(both[i], 4, 15);
    }
    NPGPT_METHOD void part(const uint8_t* p, Index stride, Index j) { open(*this, p, stride, j); }
};
struct Q3KWords : KWords<EightRows<Q3_K, 7, 4, false, true>, 32, 2, 0, 1> {
    NPGPT_METHOD void begin(const uint8_t* p, Index stride) {
        d = eight_halves(p + 108, stride);
        const Bytes low[2] = {one_word(p + 96, stride), one_word(p + 100, stride)}, high = one_word(p + 104, stride);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const Bytes both =
                _mm256_or_si256(bits(low[i % 2], i / 2 * 4, 15), _mm256_slli_epi16(bits(high, 2 * i, 3), 4));
            scales[i] = _mm256_sub_epi8(both, all(32));
        }
    }
    NPGPT_METHOD void part(const uint8_t* p, Index stride, Index j) { open(*this, p, stride, j); }
};
struct Q6KWords : KWords<EightRows<Q6_K, 63, 32, false, true>, 0, 4, 128, 2, 2> {
    NPGPT_METHOD void begin(const uint8_t* p, Index stride) {
        d = eight_halves(p + 208, stride);
        four_words(scales, p + 192, stride);
    }
    NPGPT_METHOD void part(const uint8_t* p, Index stride, Index j) { open(*this, p, stride, j); }
};

#ifndef NPGPT_VNNI
// Rows as they lie, for one row of x: those of Q5_K and Q6_K, of which there are most in files
template <class Words>
struct KRows : Words {
    const uint8_t* rows;
    Index stride, j;
    NPGPT_METHOD void part(const uint8_t* p, Index stride_, Index j_) {
        rows = p, stride = stride_, j = j_;
        if (j == 0) this->begin(p, stride);
        this->scale_groups(j);
    }
    // Sums of pairs of products of each row
    NPGPT_METHOD __m256i pairs(const uint8_t* row, __m256i x_q) const {
        constexpr int BITS = Words::LOW_BITS, ABOVE = ((1 << Words::ABOVE_BITS) - 1) << BITS;
        __m256i q = bits(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + Words::low_at(j))),
                         Words::low_shift(j), (1 << BITS) - 1);
        const __m256i above = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + Words::high_at(j)));
        const Index shift = Words::high_shift(j);
        const __m128i down = _mm_cvtsi32_si128(int(shift - BITS)), up = _mm_cvtsi32_si128(int(BITS - shift));
        const __m256i there = shift > BITS ? _mm256_srl_epi16(above, down) : _mm256_sll_epi16(above, up);
        q = _mm256_or_si256(q, _mm256_and_si256(there, all(ABOVE)));
        return _mm256_maddubs_epi16(q, x_q);
    }
    // Sums of the first sixteen products of eight rows and of the last
    NPGPT_METHOD void products_of_halves(__m256i sums[2], const Int8Block& x) const {
        const __m256i x_q = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x.q)), ones = _mm256_set1_epi16(1);
        __m256i of_two[4];  // two such pairs fit 16 bits
#pragma GCC unroll 4
        for (Index i = 0; i < 4; i++) {
            const __m256i a = pairs(rows + 2 * i * stride, x_q), b = pairs(rows + (2 * i + 1) * stride, x_q);
            const __m256i two = _mm256_add_epi16(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
            of_two[i] = _mm256_madd_epi16(two, ones);
        }
        const __m256i first = fold_64(of_two[0], of_two[1]), last = fold_64(of_two[2], of_two[3]);
        sums[0] = _mm256_permute2x128_si256(first, last, 0x20);
        sums[1] = _mm256_permute2x128_si256(first, last, 0x31);
        if (Words::BIAS)
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) sums[h] = _mm256_add_epi32(sums[h], less_of_half<Words::BIAS>(x, h));
    }
    NPGPT_METHOD __m256i products(const Int8Block& x) const {
        __m256i sums[2];
        products_of_halves(sums, x);
        return _mm256_add_epi32(sums[0], sums[1]);
    }
};
#else
template <class Words>
using KRows = Words;
#endif

struct NonlinearKWords : Nibbles<EightRows<IQ4_XS, 0>, 8> {
    Vec d, unused;
    Bytes low, high;  // of the groups' scales: four bits, and two from the sixteenth on
    NPGPT_METHOD void part(const uint8_t* p, Index stride, Index j) {
        if (j == 0) {
            high = one_word(p, stride), low = one_word(p + 4, stride);
            both_halves(d, unused, high);
        }
        const Bytes both = _mm256_or_si256(
            _mm256_and_si256(_mm256_srl_epi32(low, _mm_cvtsi32_si128(int(4 * j))), _mm256_set1_epi32(15)),
            _mm256_and_si256(_mm256_srl_epi32(high, _mm_cvtsi32_si128(int(12 + 2 * j))), _mm256_set1_epi32(48)));
        scale[0] = d * to_float((IVec)both - 32);
        numbers(p + 16 * j, stride);
#pragma GCC unroll 8
        for (Bytes& word : w) word = nonlinear(word);
    }
};

#else  // plain: what the others are held against

// Sums of products of sixteen bytes each, in any order
NPGPT_INLINE IVec products_of_16(const int8_t* a, const int8_t* b) {
#ifdef __SSE2__
    const __m128i zero = _mm_setzero_si128();
    const __m128i a16 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a));
    const __m128i b16 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b));
    const auto low = [&](__m128i x) { return _mm_srai_epi16(_mm_unpacklo_epi8(zero, x), 8); };
    const auto high = [&](__m128i x) { return _mm_srai_epi16(_mm_unpackhi_epi8(zero, x), 8); };
    return (IVec)_mm_add_epi32(_mm_madd_epi16(low(a16), low(b16)), _mm_madd_epi16(high(a16), high(b16)));
#else
    IVec sum = IVec{};
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += VLEN) sum += load_int8(a + i) * load_int8(b + i);
    return sum;
#endif
}
// Lane r: the sum of a[r]
NPGPT_INLINE IVec sums_of_four(const IVec a[4]) {
#ifdef __SSE2__
    const auto fold = [](IVec a, IVec b) {
        return _mm_add_epi32(_mm_unpacklo_epi32((__m128i)a, (__m128i)b), _mm_unpackhi_epi32((__m128i)a, (__m128i)b));
    };
    const __m128i first = fold(a[0], a[1]), last = fold(a[2], a[3]);
    return (IVec)_mm_add_epi32(_mm_unpacklo_epi64(first, last), _mm_unpackhi_epi64(first, last));
#else
    IVec sum = IVec{};
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) sum += IVec{a[0][i], a[1][i], a[2][i], a[3][i]};
    return sum;
#endif
}

struct PlainWords {
    BlockType type;
    Index length, bytes;
    Part rows[GROUP];

    explicit PlainWords(const BlockType& type) : type(type), length(type.length), bytes(type.bytes) {}
    void part(const uint8_t* p, Index stride, Index j) {
        for (Index r = 0; r < GROUP; r++) type.open(rows[r], p + r * stride, j);
    }
};
NPGPT_INLINE Vec add_products(const PlainWords& words, Vec sum, const Int8Block& x) {
    for (int h = 0; h < (words.type.halves ? 2 : 1); h++) {
        IVec q[GROUP];
        Vec scale = Vec{}, minimum = Vec{};
#pragma GCC unroll 4
        for (Index r = 0; r < GROUP; r++) {
            const Part& row = words.rows[r];
            q[r] = products_of_16(row.q + 16 * h, x.q + 16 * h);
            if (!words.type.halves) q[r] += products_of_16(row.q + 16, x.q + 16);
            scale[r] = row.scale[h], minimum[r] = row.minimum[h];
        }
        sum = fma(to_float(sums_of_four(q)), scale * set1(x.scale), sum);
        if (words.type.has_minimum)
            sum = fma(minimum, set1(words.type.halves ? x.scale * float(x.sums[h]) : x.sum), sum);
    }
    return sum;
}

#ifdef __SSE2__
// Q8_0 has no bits to take apart: rows of weights are read where they lie.
struct Q8Rows {
    static constexpr Index length = BLOCK_SIZES[Q8_0].length, bytes = BLOCK_SIZES[Q8_0].bytes;
    const uint8_t* rows;
    Index stride;
    Vec scale;
    NPGPT_METHOD void part(const uint8_t* p, Index stride_, Index) {
        rows = p + 2, stride = stride_;
        uint16_t halves[GROUP];
#pragma GCC unroll 4
        for (Index r = 0; r < GROUP; r++) __builtin_memcpy(halves + r, p + r * stride, 2);
        scale = load_half(reinterpret_cast<const uint8_t*>(halves));
    }
};
NPGPT_INLINE __m128i eight_int16(const void* p) {
    typedef int8_t Bytes __attribute__((vector_size(8)));
    typedef int16_t Words __attribute__((vector_size(16)));
    Bytes bytes;
    __builtin_memcpy(&bytes, p, 8);
    return (__m128i) __builtin_convertvector(bytes, Words);
}
NPGPT_INLINE Vec add_products(const Q8Rows& words, Vec sum, const Int8Block& x) {
    __m128i x_q[4];
    IVec q[GROUP];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) x_q[i] = eight_int16(x.q + 8 * i);
#pragma GCC unroll 4
    for (Index r = 0; r < GROUP; r++) {
        q[r] = IVec{};
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            q[r] += (IVec)_mm_madd_epi16(eight_int16(words.rows + r * words.stride + 8 * i), x_q[i]);
    }
    return fma(to_float(sums_of_four(q)), words.scale * set1(x.scale), sum);
}
#endif

#endif

// sums (M,GROUP) = x times GROUP rows from w on; ROWS: M where it is 1, else 0. TOGETHER: parts whose shifts are constants
template <int ROWS, int TOGETHER, class W>
NPGPT_INLINE void group_sums(W& words, float* sums, const Int8Block* x, const uint8_t* w, Index stride, Index K,
                             Index M) {
    const Index rows = ROWS ? ROWS : M, parts = words.length / 32;
    for (Index m = 0; m < rows; m++) store(sums + m * GROUP, Vec{});
    Vec one = Vec{};
    // What lies 12 kB on, into L2 and in order: eight rows at once are no stream that the hardware would see.
    const uint8_t* soon = w + 12288;
    for (Index k = 0; k < K / words.length; k++, w += words.bytes)
        for (Index j = 0; j < parts; j += TOGETHER)
#pragma GCC unroll 4
            for (Index i = 0; i < TOGETHER; i++, x += rows) {
                for (Index ahead = 0; ahead < GROUP * words.bytes / parts; ahead += 64)
                    __builtin_prefetch(soon + ahead, 0, 2);
                soon += GROUP * words.bytes / parts;
                words.part(w, stride, j + i);
                if (ROWS == 1)
                    one = add_products(words, one, x[0]);
                else
                    for (Index m = 0; m < rows; m++)
                        store(sums + m * GROUP, add_products(words, load(sums + m * GROUP), x[m]));
            }
    if (ROWS == 1) store(sums, one);
}

// The same for weights of one type
using GroupSums = void (*)(WeightType type, float* sums, const Int8Block* x, const uint8_t* w, Index stride, Index K,
                           Index M);
#if NPGPT_VLEN == 8
template <class W, int ROWS = 0>
static void sums_of(WeightType, float* sums, const Int8Block* x, const uint8_t* w, Index stride, Index K, Index M) {
    W words;
    group_sums<ROWS, ROWS ? W::TOGETHER : 1>(words, sums, x, w, stride, K, M);
}
static GroupSums group_sums_of(WeightType type,
                               bool one) {  // one: of a single row of x, in code of its own where that pays
    switch (type) {
        case Q8_0: return one ? sums_of<Q8Rows, 1> : sums_of<Q8Words>;
        case Q4_0: return one ? sums_of<Q4Rows, 1> : sums_of<Q4Words>;
        case Q4_1: return one ? sums_of<Q4MinRows, 1> : sums_of<Q4MinWords>;
        case Q4_K: return one ? sums_of<Q4KWords, 1> : sums_of<Q4KWords>;
        case Q6_K: return one ? sums_of<KRows<Q6KWords>, 1> : sums_of<Q6KWords>;
        case Q5_0: return sums_of<Q5Words>;
        case Q5_1: return sums_of<Q5MinWords>;
        case Q2_K: return sums_of<Q2KWords>;
        case Q3_K: return sums_of<Q3KWords>;
        case Q5_K: return one ? sums_of<KRows<Q5KWords>, 1> : sums_of<Q5KWords>;
        case IQ4_NL: return sums_of<NonlinearWords>;
        case IQ4_XS: return sums_of<NonlinearKWords>;
        default: return nullptr;  // plain
    }
}
#else
static void plain_sums(WeightType type, float* sums, const Int8Block* x, const uint8_t* w, Index stride, Index K,
                       Index M) {
    PlainWords words(block_type(type));
    group_sums<0, 1>(words, sums, x, w, stride, K, M);
}
#ifdef __SSE2__
template <int ROWS>
static void q8_sums(WeightType, float* sums, const Int8Block* x, const uint8_t* w, Index stride, Index K, Index M) {
    Q8Rows words;
    group_sums<ROWS, 1>(words, sums, x, w, stride, K, M);
}
static GroupSums group_sums_of(WeightType type, bool one) {
    return type != Q8_0 ? plain_sums : one ? q8_sums<1> : q8_sums<0>;
}
#else
static GroupSums group_sums_of(WeightType, bool) { return plain_sums; }
#endif
#endif

static void matvec_int8(float* y, Index ldy, const Int8Block* x, const Matrix& w, Index first, Index count, Index M,
                        bool add, const float* bias) {
    const GroupSums group = group_sums_of(w.type, M == 1);
    const Index bytes = row_bytes(w.type, w.K);
    const uint8_t* rows = static_cast<const uint8_t*>(w.data) + first * bytes;
    if (bias) bias += first;
    float sums[128 * GROUP];
    for (Index i = 0, n; i < count; i += n) {
        // The last rows, where they are no whole group, come with some whose turn has been; those of a small matrix alone.
        n = count - i < GROUP ? count - i : GROUP;
        const Index before = first + i + n >= GROUP ? GROUP - n : 0;
        const bool alone = n + before < GROUP;
        if (alone) n = 1;
        group(w.type, sums, x, rows + (i - before) * bytes, alone ? 0 : bytes, w.K, M);
        for (Index m = 0; m < M; m++) {
            float* out = y + m * ldy + i;
            const float* sum = sums + m * GROUP + before;
            if (n == GROUP) {
                const Vec so_far = add ? load(out) : Vec{}, more = bias ? load(bias + i) : Vec{};
                store(out, so_far + load(sum) + more);
            } else {
                for (Index r = 0; r < n; r++) out[r] = (add ? out[r] : 0.0f) + sum[r] + (bias ? bias[i + r] : 0.0f);
            }
        }
    }
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
            const int32_t sum = block.sums[0] + block.sums[1];
            block.sum = block.scale * float(sum), block.minus_8_sums = -8 * sum;
        }
}

}  // namespace NPGPT_ISA
}  // namespace npgpt
