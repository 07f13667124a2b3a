// C = A B by outer products: a tile of C, MR rows by NR = 2 VLEN columns, stays in registers while k runs.
// Twelve accumulators hide the FMA latency (4 cycles, 2 a cycle); per k the tile reads 2 vectors of B and broadcasts MR floats of A.

namespace npgpt {
namespace NPGPT_ISA {

// libnpgpt goes without what only training needs: it halves its size.
#ifdef NPGPT_INFERENCE
constexpr bool TRAINING = false;
#else
constexpr bool TRAINING = true;
#endif

constexpr Index MR = 6;
constexpr Index NR = 2 * VLEN;

// One element of the result on its way to memory, at the edge. `at` is its offset from c's first element.
NPGPT_INLINE float finish(float x, const Epilogue& e, Index at, Index column) {
    if (e.bias) x += e.bias[column];
    if (!TRAINING) return x;
    if (e.residual) x += e.residual[at];
    if (e.gelu_input) {
        e.gelu_input[at] = x;
        x = vgelu(set1(x))[0];
    }
    if (e.gelu_slope) {
        Vec y;
        x *= gelu_slope(set1(e.gelu_slope[at]), &y)[0];
        e.gelu[at] = y[0];
    }
    return x;
}

// acc (ROWS,NR) = sum over k of a[r * row_stride + k * k_stride] * b[k * b_stride + j]. Every loop over accumulators is
// unrolled by pragma: one that is not would put the array into memory and cost a factor of five.
template <int ROWS>
NPGPT_INLINE void outer_products(Vec acc[][2], const float* a, Index row_stride, Index k_stride, const float* b,
                                 Index b_stride, Index K) {
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++) acc[r][0] = acc[r][1] = Vec{};
    const auto step = [&]() __attribute__((always_inline)) {
        Vec b0 = load(b), b1 = load(b + VLEN);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            Vec a_rk = set1(a[r * row_stride]);
            acc[r][0] = fma(a_rk, b0, acc[r][0]);
            acc[r][1] = fma(a_rk, b1, acc[r][1]);
        }
        a += k_stride;
        b += b_stride;
    };
    if constexpr (ROWS == MR) {
#pragma GCC unroll 4
        for (Index k = 0; k < K; k++) step();
    } else {  // the last rows: fewer accumulators wait for each other, and hide the loop's own instructions
#pragma GCC unroll 2
        for (Index k = 0; k < K; k++) step();
    }
}

// What follows a tile where it is stored already. It takes far longer than a call, and each of the tiles would have a copy.

// h (rows,NR) = c, c = gelu(c)
static __attribute__((noinline)) void gelu_tile(float* c, float* h, Index ldc, int rows) {
    for (int r = 0; r < rows; r++, c += ldc, h += ldc) {
        const Vec x0 = load(c), x1 = load(c + VLEN);
        store(h, x0);
        store(h + VLEN, x1);
        store(c, vgelu(x0));
        store(c + VLEN, vgelu(x1));
    }
}

// c (rows,NR) *= gelu'(h), y = gelu(h): both from one exponential
static __attribute__((noinline)) void slope_tile(float* c, const float* h, float* y, Index ldc, int rows) {
    for (int r = 0; r < rows; r++, c += ldc, h += ldc, y += ldc) {
#pragma GCC unroll 2
        for (Index half = 0; half < NR; half += VLEN) {
            Vec gelu;
            store(c + half, load(c + half) * gelu_slope(load(h + half), &gelu));
            store(y + half, gelu);
        }
    }
}

// c (rows, columns) = or += edge (rows, edge_stride), then the epilogue: where a tile's columns are no whole vectors
static __attribute__((noinline)) void store_edge(float* c, Index ldc, const float* edge, Index edge_stride, int rows,
                                                 Index columns, bool accumulate, const Epilogue* epilogue, Index row0,
                                                 Index column0) {
    for (int r = 0; r < rows; r++) {
        Index j = 0;
        for (; !epilogue && j + VLEN <= columns; j += VLEN) {
            const Vec x = load(edge + r * edge_stride + j);
            store(c + r * ldc + j, accumulate ? x + load(c + r * ldc + j) : x);
        }
        for (; j < columns; j++) {
            float x = edge[r * edge_stride + j];
            if (accumulate) x += c[r * ldc + j];
            if (epilogue) x = finish(x, *epilogue, (row0 + r) * ldc + column0 + j, column0 + j);
            c[r * ldc + j] = x;
        }
    }
}

// One tile: c (ROWS, columns <= NR) = or += a b, then the epilogue. row0, column0: where the tile lies in C.
template <int ROWS>
static void tile(float* c, Index ldc, const float* a, Index row_stride, Index k_stride, const float* b, Index b_stride,
                 Index K, Index columns, bool accumulate, const Epilogue* epilogue, Index row0, Index column0) {
    Vec acc[ROWS][2];
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++) {
        __builtin_prefetch(c + r * ldc);
        __builtin_prefetch(c + r * ldc + NR - 1);
    }
    if (TRAINING && epilogue) {  // what it reads comes from further away than c
        const float* from = epilogue->gelu_slope ? epilogue->gelu_slope : epilogue->residual;
        if (from)
            for (int r = 0; r < ROWS; r++) __builtin_prefetch(from + (row0 + r) * ldc + column0);
    }
    outer_products<ROWS>(acc, a, row_stride, k_stride, b, b_stride, K);
    if (columns == NR) {
        if (accumulate) {
#pragma GCC unroll 6
            for (int r = 0; r < ROWS; r++) {
                acc[r][0] += load(c + r * ldc);
                acc[r][1] += load(c + r * ldc + VLEN);
            }
        }
        const Index at = row0 * ldc + column0;
        if (epilogue && epilogue->bias) {
            const Vec b0 = load(epilogue->bias + column0), b1 = load(epilogue->bias + column0 + VLEN);
#pragma GCC unroll 6
            for (int r = 0; r < ROWS; r++) {
                acc[r][0] += b0;
                acc[r][1] += b1;
            }
        }
        if (TRAINING && epilogue && epilogue->residual) {
            const float* residual = epilogue->residual + at;
#pragma GCC unroll 6
            for (int r = 0; r < ROWS; r++) {
                acc[r][0] += load(residual + r * ldc);
                acc[r][1] += load(residual + r * ldc + VLEN);
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            store(c + r * ldc, acc[r][0]);
            store(c + r * ldc + VLEN, acc[r][1]);
        }
        // GELU works on the stored tile: it needs the registers for itself
        if (TRAINING && epilogue && epilogue->gelu_input) gelu_tile(c, epilogue->gelu_input + at, ldc, ROWS);
        if (TRAINING && epilogue && epilogue->gelu_slope)
            slope_tile(c, epilogue->gelu_slope + at, epilogue->gelu + at, ldc, ROWS);
    } else {
        float edge[ROWS * NR];
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            store(edge + r * NR, acc[r][0]);
            store(edge + r * NR + VLEN, acc[r][1]);
        }
        store_edge(c, ldc, edge, NR, ROWS, columns, accumulate, epilogue, row0, column0);
    }
}

// A tile of at most VLEN columns needs one vector of them: two panels of rows share the registers. Each output is the sum of the
// same products in the same order as in tile().
static void narrow_tile(float* c, Index ldc, const float* a, Index panel_stride, Index row_stride, Index k_stride,
                        const float* b, Index K, Index columns, bool accumulate, const Epilogue* epilogue, Index row0,
                        Index column0) {
    Vec acc[2 * MR];
#pragma GCC unroll 12
    for (Index r = 0; r < 2 * MR; r++) acc[r] = Vec{};
    const float *first = a, *second = a + panel_stride;
    for (Index k = 0; k < K; k++, first += k_stride, second += k_stride, b += NR) {
        const Vec b0 = load(b);
#pragma GCC unroll 6
        for (Index r = 0; r < MR; r++) {
            acc[r] = fma(set1(first[r * row_stride]), b0, acc[r]);
            acc[MR + r] = fma(set1(second[r * row_stride]), b0, acc[MR + r]);
        }
    }
    float edge[2 * MR * VLEN];
#pragma GCC unroll 12
    for (Index r = 0; r < 2 * MR; r++) store(edge + r * VLEN, acc[r]);
    store_edge(c, ldc, edge, VLEN, 2 * MR, columns, accumulate, epilogue, row0, column0);
}

using Tile = void (*)(float*, Index, const float*, Index, Index, const float*, Index, Index, Index, bool,
                      const Epilogue*, Index, Index);
static constexpr Tile tiles[MR + 1] = {nullptr, tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};

static void matmul_block(float* c, Index ldc, const float* a, Index a_row_stride, const float* b_panels, Index M,
                         Index N, Index K, bool accumulate, const Epilogue* epilogue) {
    const bool packed = a_row_stride == 0;
    const Index k_stride = packed ? MR : 1, panel_stride = packed ? K * MR : MR * a_row_stride;
    if (packed) a_row_stride = 1;
    for (Index j = 0; j < N; j += NR, b_panels += K * NR) {  // one panel of B stays in L1 while A streams past it
        const Index columns = N - j < NR ? N - j : NR;
        const float* a_panel = a;
        Index i = 0;
        // Where rows of A lie a multiple of 4 kB apart, twelve of them would share a set of eight lines of the first cache
        if (TRAINING && columns <= VLEN && a_row_stride % 1024)
            for (; i + 2 * MR <= M; i += 2 * MR, a_panel += 2 * panel_stride)
                narrow_tile(c + i * ldc + j, ldc, a_panel, panel_stride, a_row_stride, k_stride, b_panels, K, columns,
                            accumulate, epilogue, i, j);
        for (; i < M; i += MR, a_panel += panel_stride) {
            const Index rows = M - i < MR ? M - i : MR;
            float* c_ij = c + i * ldc + j;
            if (rows == MR && packed)  // constant strides
                tile<MR>(c_ij, ldc, a_panel, 1, MR, b_panels, NR, K, columns, accumulate, epilogue, i, j);
            else if (rows == MR)
                tile<MR>(c_ij, ldc, a_panel, a_row_stride, 1, b_panels, NR, K, columns, accumulate, epilogue, i, j);
            else
                tiles[rows](c_ij, ldc, a_panel, a_row_stride, k_stride, b_panels, NR, K, columns, accumulate, epilogue,
                            i, j);
        }
    }
}

#if NPGPT_VLEN == 8
// Eight floats of ROWS rows, to eight columns; a column is stored as eight floats, the last row repeated.
template <int ROWS>
NPGPT_INLINE void transpose_8(float* to, Index to_stride, const float* from, Index stride) {
    __m256 r[8], s[4];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {  // the 128-bit halves of rows i and i + 4 side by side
        const int low = i % 4, high = i % 4 + 4 < ROWS ? i % 4 + 4 : ROWS - 1;
        r[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from + low * stride + (i / 4) * 4)),
                                    _mm_loadu_ps(from + high * stride + (i / 4) * 4), 1);
    }
#pragma GCC unroll 2
    for (int h = 0; h < 8; h += 4) {
        s[0] = _mm256_unpacklo_ps(r[h], r[h + 1]);
        s[1] = _mm256_unpackhi_ps(r[h], r[h + 1]);
        s[2] = _mm256_unpacklo_ps(r[h + 2], r[h + 3]);
        s[3] = _mm256_unpackhi_ps(r[h + 2], r[h + 3]);
        _mm256_storeu_ps(to + (h + 0) * to_stride, _mm256_shuffle_ps(s[0], s[2], 0x44));
        _mm256_storeu_ps(to + (h + 1) * to_stride, _mm256_shuffle_ps(s[0], s[2], 0xee));
        _mm256_storeu_ps(to + (h + 2) * to_stride, _mm256_shuffle_ps(s[1], s[3], 0x44));
        _mm256_storeu_ps(to + (h + 3) * to_stride, _mm256_shuffle_ps(s[1], s[3], 0xee));
    }
}
#endif

// (VLEN,VLEN) floats from rows of `stride` to columns: to[j * to_stride + i] = from[i * stride + j]
NPGPT_INLINE void transpose_square(float* to, Index to_stride, const float* from, Index stride) {
#if NPGPT_VLEN == 8
    transpose_8<8>(to, to_stride, from, stride);
#else
#pragma GCC unroll 4
    for (Index i = 0; i < VLEN; i++)
#pragma GCC unroll 4
        for (Index j = 0; j < VLEN; j++) to[j * to_stride + i] = from[i * stride + j];
#endif
}

// Panels that lie side by side in a row of memory are packed together: each cache line is read once, and in order.
constexpr Index ABREAST = 4, A_ABREAST = 8;

// Rows that far apart are no stream to the hardware's prefetcher
constexpr Index AHEAD = 16;
NPGPT_INLINE void prefetch(const float* row, Index n) {
#pragma GCC unroll 4
    for (Index i = 0; i < n; i += 16) __builtin_prefetch(row + i);
}

static void pack_b(float* panels, const float* b, Index k_stride, Index column_stride, Index K, Index N, Index depth) {
    Index j = 0;
    for (; column_stride == 1 && j + ABREAST * NR <= N;
         j += ABREAST * NR, panels += ABREAST * NR * depth, b += ABREAST * NR)
        for (Index k = 0; k < K; k++) {
            prefetch(b + (k + AHEAD) * k_stride, ABREAST * NR);
#pragma GCC unroll 4
            for (Index p = 0; p < ABREAST; p++) {
                store(panels + (p * depth + k) * NR, load(b + k * k_stride + p * NR));
                store(panels + (p * depth + k) * NR + VLEN, load(b + k * k_stride + p * NR + VLEN));
            }
        }
    for (; j < N; j += NR, panels += depth * NR, b += NR * column_stride) {
        Index columns = N - j < NR ? N - j : NR;
        Index k = 0;
        if (columns == NR && column_stride == 1) {
            for (; k < K; k++) {
                store(panels + k * NR, load(b + k * k_stride));
                store(panels + k * NR + VLEN, load(b + k * k_stride + VLEN));
            }
        } else if (columns == NR && k_stride == 1) {
            for (; k + VLEN <= K; k += VLEN)
#pragma GCC unroll 2
                for (Index half = 0; half < NR; half += VLEN)
                    transpose_square(panels + k * NR + half, NR, b + half * column_stride + k, column_stride);
        }
        for (; k < K; k++)
            for (Index c = 0; c < NR; c++)
                panels[k * NR + c] = c < columns ? b[k * k_stride + c * column_stride] : 0.0f;
    }
}

// The MR neighbours a[0] .. a[MR - 1], with two floats behind them where that takes fewer instructions.
NPGPT_INLINE void copy_rows(float* to, const float* a) {
#if NPGPT_VLEN == 8
    store(to, load(a));
#else
    __builtin_memcpy(to, a, MR * sizeof(float));
#endif
}

static void pack_a(float* panels, const float* a, Index row_stride, Index k_stride, Index M, Index K, Index depth) {
    Index i = 0;
    // A transposed: at each k the rows of a panel are neighbours, and those of the next panel theirs
    auto abreast = [&](Index count) __attribute__((always_inline)) {
        for (Index k = 0; k + 1 < K; k++) {
            prefetch(a + (k + AHEAD) * k_stride, count * MR);
#pragma GCC unroll 8
            for (Index p = 0; p < count; p++) copy_rows(panels + (p * depth + k) * MR, a + k * k_stride + p * MR);
        }
        for (Index p = 0; p < count; p++)  // there is no more of A behind the last
#pragma GCC unroll 6
            for (Index r = 0; r < MR; r++) panels[(p * depth + K - 1) * MR + r] = a[(K - 1) * k_stride + p * MR + r];
        panels += count * depth * MR;
        a += count * MR;
        i += count * MR;
    };
    if (row_stride == 1) {
        while (i + A_ABREAST * MR <= M) abreast(A_ABREAST);
        if (i + MR <= M) abreast((M - i) / MR);
    }
    for (; i < M; i += MR, panels += depth * MR, a += MR * row_stride) {
        const Index rows = M - i < MR ? M - i : MR;
        Index k = 0;
#if NPGPT_VLEN == 8
        if (rows == MR && k_stride == 1) {
            // Eight k at a time, transposed in registers. What is stored behind a column is overwritten by the next one
            // (so the very last columns go the plain way).
            for (; k + 9 <= K; k += 8) transpose_8<MR>(panels + k * MR, MR, a + k, row_stride);
        }
#endif
        for (; k < K; k++)
#pragma GCC unroll 6
            for (Index r = 0; r < MR; r++) panels[k * MR + r] = r < rows ? a[r * row_stride + k * k_stride] : 0.0f;
    }
}

}  // namespace NPGPT_ISA
}  // namespace npgpt
