// Causal attention of one head without ever storing its (T,T) scores (Dao et al. 2022, arXiv:2205.14135): blocks of
// queries meet blocks of keys, the softmax runs along, and only its logarithm `lse` is kept for the backward.
//
// Tiles above the diagonal are never computed, and a product over keys stops where its last query does. Rows are
// packed a block at a time, when their queries come: in a window they are used again while they are in the cache.

namespace npgpt {
namespace NPGPT_ISA {

constexpr Index QUERIES = 96;  // a block of queries: multiple of MR and of NR
constexpr Index KEYS = 96;     // a block of keys: likewise
static_assert(QUERIES == KEYS, "a block is packed once, as queries and as keys");

NPGPT_INLINE Index minimum(Index a, Index b) { return a < b ? a : b; }
NPGPT_INLINE Index maximum(Index a, Index b) { return a > b ? a : b; }

static Index attention_scratch(Index T, Index D) {
    Index rows = round_up(T, NR), columns = round_up(D, NR);
    return 2 * rows * D + rows * columns + 2 * QUERIES * KEYS + 2 * QUERIES * columns + 2 * QUERIES;
}

// Which keys the queries of a block can see at all.
struct Span {
    Index begin, end;
};
NPGPT_INLINE Span keys_of(const int32_t* first_key, Index query, Index queries) {
    Index begin = query;
    for (Index i = 0; i < queries; i++) begin = minimum(begin, first_key ? first_key[query + i] : 0);
    return {begin, query + queries};
}

// scores (queries,keys) with stride KEYS = q k^T for the tiles on or below the diagonal; k_panels hold (D,NR) each.
// The query of row 0 is `offset` keys behind the key of column 0.
NPGPT_INLINE void lower_scores(float* scores, const float* q, Index stride, const float* k_panels, Index queries,
                               Index keys, Index D, Index offset) {
    for (Index j = 0; j < keys; j += NR) {
        Index first = maximum(0, j - offset) / MR * MR;  // rows before it see none of these keys
        for (Index i = first; i < queries; i += MR) {
            float* at = scores + i * KEYS + j;
            const float* b = k_panels + j * D;
            if (queries - i >= MR)
                tile<MR>(at, KEYS, q + i * stride, stride, 1, b, NR, D, NR, false, nullptr, 0, 0);
            else
                tiles[queries - i](at, KEYS, q + i * stride, stride, 1, b, NR, D, NR, false, nullptr, 0, 0);
        }
    }
}

// c (queries,D) with stride ldc += p v: p (queries,keys) with stride KEYS, v_panels (ceil(D/NR)) of (keys,NR).
// Row i of p is zero from key i + offset + 1 on.
NPGPT_INLINE void add_lower_product(float* c, Index ldc, const float* p, const float* v_panels, Index panel_stride,
                                    Index queries, Index keys, Index D, Index offset) {
    for (Index j = 0; j < D; j += NR) {
        Index columns = minimum(NR, D - j);
        for (Index i = 0; i < queries; i += MR) {
            Index rows = minimum(MR, queries - i);
            Index K = minimum(keys, i + rows + offset);
            const float* b = v_panels + j / NR * panel_stride;
            if (rows == MR)
                tile<MR>(c + i * ldc + j, ldc, p + i * KEYS, KEYS, 1, b, NR, K, columns, true, nullptr, 0, 0);
            else
                tiles[rows](c + i * ldc + j, ldc, p + i * KEYS, KEYS, 1, b, NR, K, columns, true, nullptr, 0, 0);
        }
    }
}

// c (keys,D) with stride ldc += p^T x: p (queries,keys) with stride KEYS, x_panels of (queries,NR).
// Key i is seen by no query before i - offset.
NPGPT_INLINE void add_transposed_product(float* c, Index ldc, const float* p, const float* x_panels, Index panel_stride,
                                         Index queries, Index keys, Index D, Index offset) {
    for (Index j = 0; j < D; j += NR) {
        Index columns = minimum(NR, D - j);
        for (Index i = 0; i < keys; i += MR) {
            Index rows = minimum(MR, keys - i);
            Index first = minimum(queries, maximum(0, i - offset));
            const float* a = p + first * KEYS + i;
            const float* b = x_panels + j / NR * panel_stride + first * NR;
            if (rows == MR)
                tile<MR>(c + i * ldc + j, ldc, a, 1, KEYS, b, NR, queries - first, columns, true, nullptr, 0, 0);
            else
                tiles[rows](c + i * ldc + j, ldc, a, 1, KEYS, b, NR, queries - first, columns, true, nullptr, 0, 0);
        }
    }
}

// A block of rows of x (rows,D) as panels (ceil(D/NR)) of (rows,NR); transposed, as panels (ceil(rows/NR)) of (D,NR).
NPGPT_INLINE void pack_rows(float* panels, const float* x, Index rows, Index D, Index stride) {
    pack_b(panels, x, stride, 1, rows, D, rows);
}
NPGPT_INLINE void pack_transposed(float* panels, const float* x, Index rows, Index D, Index stride) {
    pack_b(panels, x, 1, stride, D, rows, D);
}

static void attention_forward(float* out, float* lse, float* scratch, const float* q, const float* k, const float* v,
                              const int32_t* first_key, Index T, Index D, Index stride, Index out_stride, float scale) {
    const Index rows = round_up(T, NR), columns = round_up(D, NR);
    float* k_panels = scratch;                    // (T/NR, D, NR)
    float* v_panels = k_panels + rows * D;        // (T/KEYS, D/NR, KEYS, NR)
    float* p = v_panels + rows * columns;         // (QUERIES, KEYS)
    float* acc = p + QUERIES * KEYS;              // (QUERIES, columns)
    float* top = acc + QUERIES * columns;         // (QUERIES): the largest score so far
    float* total = top + QUERIES;                 // (QUERIES): the sum of exponentials so far

    for (Index query = 0; query < T; query += QUERIES) {
        const Index queries = minimum(QUERIES, T - query);
        pack_transposed(k_panels + query * D, k + query * stride, queries, D, stride);
        pack_rows(v_panels + query * columns, v + query * stride, queries, D, stride);
        const Span seen = keys_of(first_key, query, queries);
        for (Index i = 0; i < queries; i++) {
            top[i] = -__builtin_inff();
            total[i] = 0;
            for (Index d = 0; d < columns; d += VLEN) store(acc + i * columns + d, Vec{});
        }
        for (Index key = seen.begin / KEYS * KEYS; key < seen.end; key += KEYS) {
            const Index keys = minimum(KEYS, seen.end - key);
            const Index offset = query - key;
            lower_scores(p, q + query * stride, stride, k_panels + key * D, queries, keys, D, offset);
            for (Index i = 0; i < queries; i++) {
                // p becomes e^(scale * score - top) for the keys seen, 0 for the rest of the row
                float* p_i = p + i * KEYS;
                Index last = minimum(keys, i + offset + 1);
                Index first = first_key ? minimum(maximum(0, first_key[query + i] - key), maximum(last, 0)) : 0;
                if (last <= first) {
                    for (Index s = 0; s < keys; s++) p_i[s] = 0;
                    continue;
                }
                for (Index s = 0; s < first; s++) p_i[s] = -__builtin_inff();
                for (Index s = last; s < round_up(last, VLEN); s++) p_i[s] = -__builtin_inff();
                Vec vtop = set1(top[i]), factor = set1(scale);
                for (Index s = 0; s < last; s += VLEN) vtop = vmax(load(p_i + s) * factor, vtop);
                float new_top = reduce_max(vtop);
                Vec shift = set1(-new_top), sum = Vec{};
                for (Index s = 0; s < last; s += VLEN) {
                    Vec e = vexp(fma(load(p_i + s), factor, shift));
                    store(p_i + s, e);
                    sum += e;
                }
                for (Index s = round_up(last, VLEN); s < keys; s++) p_i[s] = 0;
                if (new_top != top[i]) {  // what was summed so far belongs to a lower top
                    float fade = vexp(set1(top[i] - new_top))[0];
                    total[i] *= fade;
                    for (Index d = 0; d < columns; d += VLEN)
                        store(acc + i * columns + d, load(acc + i * columns + d) * set1(fade));
                    top[i] = new_top;
                }
                total[i] += reduce_add(sum);
            }
            add_lower_product(acc, columns, p, v_panels + key * columns, keys * NR, queries, keys, D, offset);
        }
        for (Index i = 0; i < queries; i++) {
            row_scale(out + (query + i) * out_stride, acc + i * columns, D, 1 / total[i]);
            lse[query + i] = top[i] + __builtin_logf(total[i]);
        }
    }
}

static void attention_backward(float* dq, float* dk, float* dv, float* scratch, const float* dout, const float* q,
                               const float* k, const float* v, const float* out, const float* lse,
                               const int32_t* first_key, Index T, Index D, Index stride, Index out_stride, float scale,
                               bool add) {
    const Index rows = round_up(T, NR), columns = round_up(D, NR);
    float* k_columns = scratch;                    // (T/NR, D, NR): for q k^T
    float* v_columns = k_columns + rows * D;       // (T/NR, D, NR): for dout v^T
    float* k_rows = v_columns + rows * D;          // (T/KEYS, D/NR, KEYS, NR): for dscores k
    float* q_rows = k_rows + rows * columns;       // (D/NR, QUERIES, NR): for dscores^T q
    float* dout_rows = q_rows + QUERIES * columns; // (D/NR, QUERIES, NR): for p^T dout
    float* p = dout_rows + QUERIES * columns;      // (QUERIES, KEYS)
    float* dp = p + QUERIES * KEYS;                // (QUERIES, KEYS)
    float* delta = dp + QUERIES * KEYS;            // (QUERIES): sum over channels of dout * out

    for (Index query = 0; query < T; query += QUERIES) {
        const Index queries = minimum(QUERIES, T - query);
        pack_transposed(k_columns + query * D, k + query * stride, queries, D, stride);
        pack_transposed(v_columns + query * D, v + query * stride, queries, D, stride);
        pack_rows(k_rows + query * columns, k + query * stride, queries, D, stride);
        pack_rows(q_rows, q + query * stride, queries, D, stride);
        pack_rows(dout_rows, dout + query * out_stride, queries, D, out_stride);
        for (Index i = 0; i < queries; i++) {
            const float *dout_i = dout + (query + i) * out_stride, *out_i = out + (query + i) * out_stride;
            const Index at = (query + i) * stride;
            Vec sum = Vec{};
            Index d = 0;
            for (; d + VLEN <= D; d += VLEN) sum = fma(load(dout_i + d), load(out_i + d), sum);
            float rest = 0;
            for (; d < D; d++) rest += dout_i[d] * out_i[d];
            delta[i] = reduce_add(sum) + rest;
            for (d = 0; d < D; d++) dq[at + d] = 0;
            for (d = 0; d < D && !add; d++) dk[at + d] = dv[at + d] = 0;
        }
        const Span seen = keys_of(first_key, query, queries);
        for (Index key = seen.begin / KEYS * KEYS; key < seen.end; key += KEYS) {
            const Index keys = minimum(KEYS, seen.end - key);
            const Index offset = query - key;
            // forward: scores = scale * q k^T, p = e^(scores - lse)
            lower_scores(p, q + query * stride, stride, k_columns + key * D, queries, keys, D, offset);
            // forward: out = p v, so dp = dout v^T
            lower_scores(dp, dout + query * out_stride, out_stride, v_columns + key * D, queries, keys, D, offset);
            for (Index i = 0; i < queries; i++) {
                float *p_i = p + i * KEYS, *dp_i = dp + i * KEYS;
                Index last = maximum(0, minimum(keys, i + offset + 1));
                Index first = first_key ? minimum(maximum(0, first_key[query + i] - key), last) : 0;
                Vec shift = set1(-lse[query + i]), factor = set1(scale), delta_i = set1(delta[i]);
                Index padded = round_up(last, VLEN);
                for (Index s = 0; s < padded; s += VLEN) {
                    Vec e = vexp(fma(load(p_i + s), factor, shift));
                    store(p_i + s, e);
                    // dscores = p (dp - delta), and scores = scale * q k^T brings the scale along
                    store(dp_i + s, e * (load(dp_i + s) - delta_i) * factor);
                }
                for (Index s = 0; s < first; s++) p_i[s] = dp_i[s] = 0;
                for (Index s = last; s < keys; s++) p_i[s] = dp_i[s] = 0;
            }
            // forward: out = p v
            add_transposed_product(dv + key * stride, stride, p, dout_rows, queries * NR, queries, keys, D, offset);
            // forward: scores = scale * q k^T
            add_transposed_product(dk + key * stride, stride, dp, q_rows, queries * NR, queries, keys, D, offset);
            add_lower_product(dq + query * stride, stride, dp, k_rows + key * columns, keys * NR, queries, keys, D,
                              offset);
        }
    }
}

}  // namespace NPGPT_ISA
}  // namespace npgpt
