// The matmul of the whole engine: forward, input gradient and weight gradient are this one product with other strides.
//
// After Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008): K is cut so that a panel of B
// stays in L1 and a block of A in L2. B is packed into panels: a small one beforehand for everybody, a large one strip by
// strip by whoever multiplies the strip, so that a weight matrix is read once from memory and needs no packed copy
// between steps. A is packed first, by all threads, unless the product is too small for that to pay.
#include <algorithm>

#include "../memory/blocks.h"
#include "../threads/pool.h"
#include "ops.h"

namespace npgpt {
namespace {

constexpr Index K_BLOCK = 320;            // at most: a panel of B (K,16) is 20 kB of a 32 kB L1
constexpr Index SHARED_A = Index(1) << 20;  // floats of A packed at a time: 4 MB, shared by all cores in L3
constexpr Index SHARED_B = Index(1) << 18;  // a B of up to 1 MB is packed once for everybody
constexpr Index ROWS = 192;               // rows of A that meet a strip of B in L2
constexpr Index STRIP_PANELS = 4;         // panels of B in a strip
constexpr Index SMALL = 128;              // N or K up to this: reading A in place costs less than packing it
constexpr Index MIN_WORK = 1 << 16;       // multiply-adds: below this a second thread does not pay

Index round_up(Index n, Index to) { return (n + to - 1) / to * to; }

// K in equal blocks of at most K_BLOCK. A function of K alone: it fixes the order of every sum.
Index k_block(Index K) {
    const Index blocks = (K + K_BLOCK - 1) / K_BLOCK;
    return blocks <= 1 ? K : round_up((K + blocks - 1) / blocks, 8);
}

Epilogue shifted(const Epilogue& e, Index at, Index column) {
    return {e.bias ? e.bias + column : nullptr, e.residual ? e.residual + at : nullptr,
            e.gelu_input ? e.gelu_input + at : nullptr, e.gelu_slope ? e.gelu_slope + at : nullptr,
            e.gelu ? e.gelu + at : nullptr};
}

void matmul_by(int workers, bool alone, float* c, Index ldc, View a, View b, Index M, Index N, Index K, bool accumulate,
               const Epilogue* epilogue) {
    if (M == 0 || N == 0) return;
    const Kernels& kernels = active_kernels();
    if (K == 0) {  // an empty sum
        for (Index i = 0; i < M; i++) {
            if (!accumulate) std::fill_n(c + i * ldc, N, 0.0f);
            const Epilogue here = epilogue ? shifted(*epilogue, i * ldc, 0) : Epilogue{};
            kernels.matmul_block(c + i * ldc, ldc, c, 0, c, 1, N, 0, true, &here);
        }
        return;
    }
    const Index MR = kernels.tile_m, NR = kernels.tile_n;
    const Index kc = k_block(K);
    const Index b_panels = (N + NR - 1) / NR;
    const Index strips = (b_panels + STRIP_PANELS - 1) / STRIP_PANELS;
    const bool pack_a = a.column != 1 || (N > SMALL && K > SMALL);
    const bool share_b = K * b_panels * NR <= SHARED_B && M > MR;
    auto run = [&](Index count, auto&& body) {
        if (alone)
            for (Index i = 0; i < count; i++) body(i, 0);
        else
            parallel_for(count, body, workers);
    };

    // A packed A is taken in chunks: so many rows, and so many blocks of K, that a chunk fits SHARED_A
    const Index chunk_rows = pack_a ? std::min(round_up(M, MR), round_up(Index(1024), ROWS)) : M;
    const Index chunk_k = pack_a ? std::max(kc, SHARED_A / chunk_rows / kc * kc) : round_up(K, kc);
    Block a_block(pack_a ? chunk_rows * std::min(K, chunk_k) : 0);
    Block b_block(share_b ? K * b_panels * NR : workers * kc * STRIP_PANELS * NR);

    for (Index m0 = 0; m0 < M; m0 += chunk_rows)
        for (Index k0 = 0; k0 < K; k0 += chunk_k) {
            const Index rows = std::min(chunk_rows, M - m0), padded_rows = round_up(rows, MR);
            const Index depth = std::min(chunk_k, K - k0);
            const Index k_blocks = (depth + kc - 1) / kc;

            // 1. pack: groups of A's panels, and B's panels where they are shared
            constexpr Index GROUP = 8;
            const Index groups = pack_a ? (padded_rows / MR + GROUP - 1) / GROUP : 0;
            const Index shared_panels = share_b && m0 == 0 ? b_panels : 0;
            run(k_blocks * (groups + shared_panels), [&](Index item, int) {
                const Index k = item % k_blocks * kc, kn = std::min(kc, depth - k), part = item / k_blocks;
                if (part < groups) {
                    const Index row = part * GROUP * MR;
                    kernels.pack_a(a_block.data + k * padded_rows + row * kn,
                                   a.data + (m0 + row) * a.row + (k0 + k) * a.column, a.row, a.column,
                                   std::min(GROUP * MR, rows - row), kn);
                } else {
                    const Index column = (part - groups) * NR;
                    kernels.pack_b(b_block.data + (k0 + k) * b_panels * NR + column * kn,
                                   b.data + (k0 + k) * b.row + column * b.column, b.row, b.column, kn,
                                   std::min(NR, N - column));
                }
            });

            // 2. multiply: strips of columns, and blocks of rows too where the strips alone would not keep all busy
            Index row_blocks = std::max<Index>(1, std::min(rows / (8 * MR), (4 * workers + strips - 1) / strips));
            const Index block_rows = round_up((rows + row_blocks - 1) / row_blocks, MR);
            row_blocks = (rows + block_rows - 1) / block_rows;
            run(strips * row_blocks, [&](Index item, int worker) {
                // rows outermost: a worker's share of the items is a range of tokens, the same in one op after another
                const Index column = item % strips * STRIP_PANELS * NR;
                const Index columns = std::min(STRIP_PANELS * NR, N - column);
                const Index row_begin = item / strips * block_rows;
                const Index row_end = std::min(rows, row_begin + block_rows);
                for (Index k = 0; k < depth; k += kc) {
                    const Index kn = std::min(kc, depth - k);
                    float* b_strip;
                    if (share_b) {
                        b_strip = b_block.data + (k0 + k) * b_panels * NR + column * kn;
                    } else {
                        b_strip = b_block.data + worker * kc * STRIP_PANELS * NR;
                        kernels.pack_b(b_strip, b.data + (k0 + k) * b.row + column * b.column, b.row, b.column, kn,
                                       columns);
                    }
                    const bool last = k0 + k + kn == K;
                    for (Index row = row_begin; row < row_end; row += ROWS) {
                        const Index at = (m0 + row) * ldc + column;
                        Epilogue here;
                        if (epilogue && last) here = shifted(*epilogue, at, column);
                        const float* a_rows = pack_a ? a_block.data + k * padded_rows + row * kn
                                                     : a.data + (m0 + row) * a.row + k0 + k;
                        kernels.matmul_block(c + at, ldc, a_rows, pack_a ? 0 : a.row, b_strip,
                                             std::min(ROWS, row_end - row), columns, kn, accumulate || k0 + k > 0,
                                             epilogue && last ? &here : nullptr);
                    }
                }
            });
        }
}

}  // namespace

void matmul(float* c, Index ldc, View a, View b, Index M, Index N, Index K, bool accumulate,
            const Epilogue* epilogue) {
    const bool alone = M * N * K < MIN_WORK;
    matmul_by(alone ? 1 : num_threads(), alone, c, ldc, a, b, M, N, K, accumulate, epilogue);
}

void matmul_alone(float* c, Index ldc, View a, View b, Index M, Index N, Index K) {
    matmul_by(1, true, c, ldc, a, b, M, N, K, false, nullptr);
}

}  // namespace npgpt
