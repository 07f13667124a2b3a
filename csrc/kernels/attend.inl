// Attention with a key-value cache: keys and values of a head lie (keys,D), oldest first, the queries' own among them.

namespace npgpt {
namespace NPGPT_ISA {

NPGPT_INLINE float dot(const float* a, const float* b, Index n) {
    Vec sum = Vec{};
    Index i = 0;
    for (; i + VLEN <= n; i += VLEN) sum = fma(load(a + i), load(b + i), sum);
    if (i < n) sum = fma(load_part(a + i, n - i), load_part(b + i, n - i), sum);
    return reduce_add(sum);
}

// WIDTH vectors of out = p (keys) times v (keys,D)
template <int WIDTH>
NPGPT_INLINE void weigh(float* out, const float* p, const float* v, Index keys, Index D, float factor) {
    Vec acc[WIDTH];
#pragma GCC unroll 8
    for (int q = 0; q < WIDTH; q++) acc[q] = Vec{};
    for (Index t = 0; t < keys; t++, v += D) {
        const Vec p_t = set1(p[t]);
#pragma GCC unroll 8
        for (int q = 0; q < WIDTH; q++) acc[q] = fma(p_t, load(v + q * VLEN), acc[q]);
    }
#pragma GCC unroll 8
    for (int q = 0; q < WIDTH; q++) store(out + q * VLEN, acc[q] * set1(factor));
}

static void attend(float* out, float* scores, const float* q, const float* k, const float* v, Index first, Index keys,
                   Index D, float scale) {
    k += first * D, v += first * D, keys -= first;
    Index t = 0;
    for (; D % VLEN == 0 && t + 4 <= keys; t += 4) {
        Vec sum[4] = {};
        for (Index i = 0; i < D; i += VLEN)
#pragma GCC unroll 4
            for (Index r = 0; r < 4; r++) sum[r] = fma(load(q + i), load(k + (t + r) * D + i), sum[r]);
        reduce_add4(scores + t, sum);
    }
    for (; t < keys; t++) scores[t] = dot(q, k + t * D, D);
    row_scale(scores, scores, keys, scale);
    const float factor = 1 / row_exp(scores, scores, keys, row_max(scores, keys));
    Index d = 0;
    for (; d + 8 * VLEN <= D; d += 8 * VLEN) weigh<8>(out + d, scores, v + d, keys, D, factor);
    for (; d + 4 * VLEN <= D; d += 4 * VLEN) weigh<4>(out + d, scores, v + d, keys, D, factor);
    for (; d + VLEN <= D; d += VLEN) weigh<1>(out + d, scores, v + d, keys, D, factor);
    for (; d < D; d++) {
        float sum = 0;
        for (Index t = 0; t < keys; t++) sum += scores[t] * v[t * D + d];
        out[d] = sum * factor;
    }
}

// As attention_forward, but that keys come from the cache and are packed for each block of queries.
static void attend_block(float* out, Index out_stride, float* scratch, const float* q, Index stride, const float* k,
                         const float* v, Index queries, Index keys, Index window, Index D, float scale) {
    const Index columns = round_up(D, NR), past = keys - queries;
    float* k_panels = scratch;                 // (KEYS/NR, D, NR)
    float* v_panels = k_panels + KEYS * D;     // (D/NR, KEYS, NR)
    float* p = v_panels + KEYS * columns;      // (QUERIES, KEYS)
    float* acc = p + QUERIES * KEYS;           // (QUERIES, columns)
    float* top = acc + QUERIES * columns;      // (QUERIES): the largest score so far
    float* total = top + QUERIES;              // (QUERIES): the sum of exponentials so far
    for (Index query = 0; query < queries; query += QUERIES) {
        const Index n = minimum(QUERIES, queries - query), end = past + query + n;
        for (Index i = 0; i < n; i++) top[i] = -__builtin_inff(), total[i] = 0;
        for (Index i = 0; i < n * columns; i++) acc[i] = 0;
        for (Index key = maximum(0, past + query - window + 1) / KEYS * KEYS; key < end; key += KEYS) {
            const Index kn = minimum(KEYS, end - key), offset = past + query - key;
            pack_transposed(k_panels, k + key * D, kn, D, D);
            pack_rows(v_panels, v + key * D, kn, D, D);
            lower_scores(p, q + query * stride, stride, k_panels, n, kn, D, offset);
            for (Index i = 0; i < n; i++) {
                float* p_i = p + i * KEYS;
                const Index last = maximum(0, minimum(kn, i + offset + 1));
                const Index begin = minimum(last, maximum(0, i + offset + 1 - window));
                if (last > begin) {
                    const float scaled_top = row_max(p_i + begin, last - begin) * scale;
                    if (scaled_top > top[i]) {  // what was summed so far belongs to a lower top
                        const float fade = vexp(set1(top[i] - scaled_top))[0];
                        total[i] *= fade;
                        row_scale(acc + i * columns, acc + i * columns, columns, fade);
                        top[i] = scaled_top;
                    }
                    row_scale(p_i + begin, p_i + begin, last - begin, scale);
                    total[i] += row_exp(p_i + begin, p_i + begin, last - begin, top[i]);
                }
                for (Index s = 0; s < begin; s++) p_i[s] = 0;
                for (Index s = last; s < kn; s++) p_i[s] = 0;
            }
            add_lower_product(acc, columns, p, v_panels, kn * NR, n, kn, D, offset);
        }
        for (Index i = 0; i < n; i++) row_scale(out + (query + i) * out_stride, acc + i * columns, D, 1 / total[i]);
    }
}

}  // namespace NPGPT_ISA
}  // namespace npgpt
