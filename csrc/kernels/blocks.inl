// ggml's block types, from bytes to int8 with scales, and on to floats. Layouts: ggml's src/ggml-common.h. As in
// npgpt/interop/blocks.py, products are in ggml's order: unpack_rows gives its floats, to the bit.
//
// A type is a struct: of the block at p, numbers(p, g) are the bytes q of its sixteen numbers of number g, each of which stands
// for scale(p, g) q, or scale(p, g) q + minimum(p, g).

namespace npgpt {
namespace NPGPT_ISA {

typedef uint8_t Sixteen __attribute__((vector_size(16)));

NPGPT_INLINE Sixteen load_16(const uint8_t* p) {
    Sixteen bytes;
    __builtin_memcpy(&bytes, p, 16);
    return bytes;
}
NPGPT_INLINE Sixteen nibbles(const uint8_t* p, int high) {
    const uint8_t shift = uint8_t(4 * high);
    return load_16(p) >> shift & 15;
}

// 16 where the bit is set, of sixteen bits
NPGPT_INLINE Sixteen fifth_bits(const uint8_t* p) {
    const Sixteen place = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint64_t copies[2] = {p[0] * 0x0101010101010101u, p[1] * 0x0101010101010101u};
    return (Sixteen)((load_16(reinterpret_cast<const uint8_t*>(copies)) & place) != 0) & 16;
}

NPGPT_INLINE Sixteen nonlinear(Sixteen nibble) {
#if NPGPT_VLEN == 8
    return (Sixteen)_mm_shuffle_epi8(*reinterpret_cast<const __m128i*>(NONLINEAR), (__m128i)nibble);
#else
    for (int i = 0; i < 16; i++) nibble[i] = uint8_t(NONLINEAR[nibble[i]]);
    return nibble;
#endif
}

// ---- blocks of 32: a scale d, then a minimum or not, then the numbers

// HALVES: the sixteens of 32 have scales of their own
template <WeightType TYPE, bool HAS_MINIMUM = false, bool HAS_HALVES = false>
struct Blocks {
    static constexpr Index LENGTH = BLOCK_SIZES[TYPE].length, BYTES = BLOCK_SIZES[TYPE].bytes;
    static constexpr bool MINIMUM = HAS_MINIMUM, HALVES = HAS_HALVES;
    NPGPT_INLINE float scale(const uint8_t* p, int) { return half_at(p); }
    NPGPT_INLINE float minimum(const uint8_t* p, int) { return half_at(p + 2); }
};
struct Q8Block : Blocks<Q8_0> {
    NPGPT_INLINE Sixteen numbers(const uint8_t* p, int g) { return load_16(p + 2 + 16 * g); }
};
struct Q4Block : Blocks<Q4_0> {
    NPGPT_INLINE Sixteen numbers(const uint8_t* p, int g) { return nibbles(p + 2, g) - 8; }
};
struct Q4MinBlock : Blocks<Q4_1, true> {
    NPGPT_INLINE Sixteen numbers(const uint8_t* p, int g) { return nibbles(p + 4, g); }
};
struct Q5Block : Blocks<Q5_0> {
    NPGPT_INLINE Sixteen numbers(const uint8_t* p, int g) {
        return (nibbles(p + 6, g) | fifth_bits(p + 2 + 2 * g)) - 16;
    }
};
struct Q5MinBlock : Blocks<Q5_1, true> {
    NPGPT_INLINE Sixteen numbers(const uint8_t* p, int g) { return nibbles(p + 8, g) | fifth_bits(p + 4 + 2 * g); }
};
struct NonlinearBlock : Blocks<IQ4_NL> {
    NPGPT_INLINE Sixteen numbers(const uint8_t* p, int g) { return nonlinear(nibbles(p + 2, g)); }
};

// ---- blocks of 256: integers scale d, and the minima's scale, which are taken off

// Of Q4_K and Q5_K: d, dmin, then eight scales and eight minima of six bits in twelve bytes
template <WeightType TYPE>
struct SixBits : Blocks<TYPE, true> {
    NPGPT_INLINE float scale(const uint8_t* p, int g) {
        const uint8_t* s = p + 4 + g / 2;
        return half_at(p) * float(g < 8 ? s[0] & 63 : (s[4] & 15) | s[-4] >> 6 << 4);
    }
    NPGPT_INLINE float minimum(const uint8_t* p, int g) {
        const uint8_t* s = p + 4 + g / 2;
        return -(half_at(p + 2) * float(g < 8 ? s[4] & 63 : s[4] >> 4 | s[0] >> 6 << 4));
    }
};
// From p on 32 bytes are read once at each shift: number g % 2 of their halves at shift g / 2, and on to the next 32
NPGPT_INLINE Sixteen shifted(const uint8_t* p, int g, int bits) {
    const int shifts = 8 / bits;
    const uint8_t shift = uint8_t(g / 2 % shifts * bits), mask = uint8_t((1 << bits) - 1);
    return load_16(p + g / 2 / shifts * 32 + g % 2 * 16) >> shift & mask;
}
struct Q2KBlock : Blocks<Q2_K, true, true> {
    NPGPT_INLINE Sixteen numbers(const uint8_t* p, int g) { return shifted(p + 16, g, 2); }
    NPGPT_INLINE float scale(const uint8_t* p, int g) { return half_at(p + 80) * float(p[g] & 15); }
    NPGPT_INLINE float minimum(const uint8_t* p, int g) { return -(half_at(p + 82) * float(p[g] >> 4)); }
};
struct Q3KBlock : Blocks<Q3_K, false, true> {
    NPGPT_INLINE Sixteen numbers(const uint8_t* p, int g) {
        return (shifted(p + 32, g, 2) | shifted(p, g, 1) << 2) - 4;
    }
    NPGPT_INLINE float scale(const uint8_t* p, int g) {
        const uint8_t* s = p + 96;
        const int low = s[g % 8] >> (g / 8 * 4) & 15, high = s[8 + g % 4] >> (g / 4 * 2) & 3;
        return half_at(p + 108) * float((low | high << 4) - 32);
    }
};
struct Q4KBlock : SixBits<Q4_K> {
    NPGPT_INLINE Sixteen numbers(const uint8_t* p, int g) { return shifted(p + 16, g, 4); }
};
struct Q5KBlock : SixBits<Q5_K> {
    NPGPT_INLINE Sixteen numbers(const uint8_t* p, int g) { return shifted(p + 48, g, 4) | shifted(p + 16, g, 1) << 4; }
};
struct Q6KBlock : Blocks<Q6_K, false, true> {
    NPGPT_INLINE Sixteen numbers(const uint8_t* p, int g) {  // two halves: 64 bytes of nibbles, 32 of their high bits
        const Sixteen low = nibbles(p + g / 8 * 64 + g % 4 * 16, g % 8 / 4);
        return (low | shifted(p + 128, g, 2) << 4) - 32;
    }
    NPGPT_INLINE float scale(const uint8_t* p, int g) { return half_at(p + 208) * float(int8_t(p[192 + g])); }
};
struct NonlinearKBlock : Blocks<IQ4_XS> {
    NPGPT_INLINE Sixteen numbers(const uint8_t* p, int g) { return nonlinear(nibbles(p + 8 + g / 2 * 16, g % 2)); }
    NPGPT_INLINE float scale(const uint8_t* p, int g) {
        const int j = g / 2, low = p[4 + j / 2] >> (j % 2 * 4) & 15, high = (p[2] | p[3] << 8) >> (2 * j) & 3;
        return half_at(p) * float((low | high << 4) - 32);
    }
};

// ---- any of them

struct Part {  // 32 numbers; where it has HALVES, the first and the last sixteen have scales and minima of their own
    int8_t q[32];
    float scale[2], minimum[2];
};
struct BlockType {
    void (*open)(Part& part, const uint8_t* p, Index j);  // numbers [32 j, 32 j + 32) of the block at p
    Index length, bytes;
    bool has_minimum, halves;
};

template <class T>
static void open_part(Part& part, const uint8_t* p, Index j) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        const int g = 2 * int(j) + h;
        const Sixteen q = T::numbers(p, g);
        __builtin_memcpy(part.q + 16 * h, &q, 16);
        part.scale[h] = h && !T::HALVES ? part.scale[0] : T::scale(p, g);
        if (T::MINIMUM) part.minimum[h] = h && !T::HALVES ? part.minimum[0] : T::minimum(p, g);
    }
}
template <class T>
NPGPT_INLINE BlockType block_type_of() {
    return {open_part<T>, T::LENGTH, T::BYTES, T::MINIMUM, T::HALVES};
}
static BlockType block_type(WeightType type) {
    switch (type) {
        case Q8_0: return block_type_of<Q8Block>();
        case Q4_0: return block_type_of<Q4Block>();
        case Q4_1: return block_type_of<Q4MinBlock>();
        case Q5_0: return block_type_of<Q5Block>();
        case Q5_1: return block_type_of<Q5MinBlock>();
        case Q2_K: return block_type_of<Q2KBlock>();
        case Q3_K: return block_type_of<Q3KBlock>();
        case Q4_K: return block_type_of<Q4KBlock>();
        case Q5_K: return block_type_of<Q5KBlock>();
        case Q6_K: return block_type_of<Q6KBlock>();
        case IQ4_NL: return block_type_of<NonlinearBlock>();
        case IQ4_XS: return block_type_of<NonlinearKBlock>();
        default: return {};  // plain
    }
}

// y (n) = numbers [k, k + n) of a row, both multiples of 32
static void unpack_blocks(const BlockType& type, float* y, const uint8_t* row, Index k, Index n) {
    for (const float* end = y + n; y < end; k += 32, y += 32) {
        Part part;
        type.open(part, row + k / type.length * type.bytes, k % type.length / 32);
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
            const int h = 2 * v / VECTORS;
            const Vec x = to_float(load_int8(part.q + v * VLEN)) * set1(part.scale[h]);
            store(y + v * VLEN, type.has_minimum ? x + set1(part.minimum[h]) : x);
        }
    }
}

static void unpack_rows(float* y, const Matrix& w, Index first, Index count, Index k, Index kn) {
    const Index bytes = row_bytes(w.type, w.K);
    const uint8_t* row = static_cast<const uint8_t*>(w.data) + first * bytes;
    const BlockType type = block_type(w.type);
    for (Index i = 0; i < count; i++, row += bytes, y += kn) switch (w.type) {
            case F32: unpack<FloatBlock>(y, row, k, kn); break;
            case F16: unpack<HalfBlock>(y, row, k, kn); break;
            case BF16: unpack<BfloatBlock>(y, row, k, kn); break;
            default: unpack_blocks(type, y, row, k, kn); break;
        }
}

}  // namespace NPGPT_ISA
}  // namespace npgpt
