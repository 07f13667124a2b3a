// The matmul of the whole engine: forward, input gradient and weight gradient are this one product with other strides.
//
// After Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008): K is cut so that a panel of B
// stays in L1 and a block of A in L2. Of the larger factor each thread packs what it multiplies itself, so that it finds it in
// its own cache and a weight matrix is read once from memory; of the smaller one it packs a copy of its own, as two cores that
// write and read the same lines, with a cache boundary between them, take a quarter longer over a small product.
#include <algorithm>

#include "../memory/blocks.h"
#include "../threads/pool.h"
#include "ops.h"

namespace npgpt {
namespace {

constexpr Index K_BLOCK = 320;  // at most: a panel of B (K,16) is 20 kB of a 32 kB L1. Runs of 0.1.0 depend on it
constexpr Index WHOLE = Index(1) << 20;  // floats of the smaller factor packed at a time: 4 MB, in L3
constexpr Index CHUNK = Index(1) << 18;  // where it is narrow and deep: 1 MB, in L2
constexpr Index NARROW = 1024;  // N up to this: a chunk of B has many rows
constexpr Index ROWS = 192;  // rows of A that meet a strip of B in L2
constexpr Index STRIP_PANELS = 4;  // panels of B in a strip, at most
constexpr Index SMALL = 128;  // N or K up to this: reading A in place costs less than packing it
constexpr Index COPIED = Index(5) << 17;  // floats of a factor of which each core packs a copy: 2.5 MB
constexpr Index COPY_FOR = 64;  // but no core for fewer rows or columns of the other
constexpr Index UNPACKED = 32;  // numbers that are unpacked together
constexpr Index MIN_WORK = 1 << 16;  // multiply-adds: below this a second thread does not pay

// K in equal blocks of at most K_BLOCK. A function of K alone: it fixes the order of every sum.
Index k_block(Index K) {
    const Index blocks = (K + K_BLOCK - 1) / K_BLOCK;
    return blocks <= 1 ? K : round_up((K + blocks - 1) / blocks, 8);
}

// numbers (count,width) = numbers [at, at + width) of rows [row, row + count)
void unpack(const Kernels& kernels, float* numbers, const Parts& stored, Index row, Index count, Index at,
            Index width) {
    for (const Matrix* part = stored.parts; count > 0; row -= part->N, part++) {
        const Index here = std::min(count, part->N - row);
        if (here <= 0) continue;
        kernels.unpack_rows(numbers, *part, row, here, at, width);
        numbers += here * width, row += here, count -= here;
    }
}

// Columns [column, column + columns) of rows [k, k + kn) of B as panels of `depth`. What is stored is unpacked into `numbers`
// first, in as many blocks of 32 as hold it.
void pack_b(const Kernels& kernels, float* panels, const View& b, Index k, Index column, Index kn, Index columns,
            Index depth, float* numbers) {
    if (!b.stored.count) {
        kernels.pack_b(panels, b.data + k * b.row + column * b.column, b.row, b.column, kn, columns, depth);
        return;
    }
    const bool along_k = b.row == 1;
    const Index unit = b.stored.parts->K % UNPACKED ? 1 : UNPACKED;  // plain numbers have no blocks
    const Index at = along_k ? k : column, first = at / unit * unit;
    const Index width = round_up(at + (along_k ? kn : columns), unit) - first;
    unpack(kernels, numbers, b.stored, along_k ? column : k, along_k ? columns : kn, first, width);
    kernels.pack_b(panels, numbers + at - first, along_k ? 1 : width, along_k ? width : 1, kn, columns, depth);
}

Epilogue shifted(const Epilogue& e, Index at, Index column) {
    return {e.bias ? e.bias + column : nullptr, e.residual ? e.residual + at : nullptr,
            e.gelu_input ? e.gelu_input + at : nullptr, e.gelu_slope ? e.gelu_slope + at : nullptr,
            e.gelu ? e.gelu + at : nullptr};
}

void matmul_by(int workers, bool alone, float* c, Index ldc, View a, View b, Index M, Index N, Index K, bool accumulate,
               const Epilogue* epilogue, const LowRank* low_rank) {
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
    const Index R = low_rank ? low_rank->K : 0;
    const bool pack_a = R || a.column != 1 || (N > SMALL && K > SMALL);
    auto run = [&](Index count, auto&& body) {
        if (alone)
            for (Index i = 0; i < count; i++) body(i, 0);
        else
            parallel_for(count, body, workers);
    };
    // Copies of a packed factor, which meets so many rows or columns of the other: one for each worker where that pays.
    auto copies_of = [&](Index floats, Index others) {
        return floats <= COPIED && others >= COPY_FOR * workers ? Index(workers) : 1;
    };
    // The last block of K goes on with the low-rank product, as if the factors were that much deeper.
    auto depth_of = [&](Index k, Index kn) { return kn + (k + kn == K ? R : 0); };
    // c's block at (row, column) from packed panels of B and rows of A, packed (a_stride 0) or not; k of K are done then
    auto multiply = [&](const float* a_rows, Index a_stride, const float* b_panels, Index row, Index column, Index rows,
                        Index columns, Index k, Index kn) {
        const bool last = epilogue && k + kn == K;
        const Index at = row * ldc + column;
        const Epilogue here = last ? shifted(*epilogue, at, column) : Epilogue{};
        kernels.matmul_block(c + at, ldc, a_rows, a_stride, b_panels, rows, columns, depth_of(k, kn),
                             accumulate || k > 0, last ? &here : nullptr);
    };
    // `rows` of A from `row` on and their numbers [k, k + kn) as panels
    auto pack_rows = [&](float* panels, Index row, Index k, Index rows, Index kn) {
        const Index depth = depth_of(k, kn);
        kernels.pack_a(panels, a.data + row * a.row + k * a.column, a.row, a.column, rows, kn, depth);
        if (depth > kn) {
            const View& p = low_rank->a;
            kernels.pack_a(panels + kn * MR, p.data + row * p.row, p.row, p.column, rows, R, depth);
        }
    };
    const Index most_unpacked = (std::min(kc, K) + 2 * UNPACKED) * (STRIP_PANELS * NR + 2 * UNPACKED);
    Block unpacked(b.stored.count ? workers * most_unpacked : 0);
    auto pack = [&](float* panels, Index k, Index column, Index kn, Index columns, int worker) {
        const Index depth = depth_of(k, kn);
        pack_b(kernels, panels, b, k, column, kn, columns, depth, unpacked.data + worker * most_unpacked);
        if (depth > kn) {
            const View& q = low_rank->b;
            kernels.pack_b(panels + kn * NR, q.data + column * q.column, q.row, q.column, R, columns, depth);
        }
    };

    const Index width = b_panels * NR;
    if (N <= M && (K * width <= WHOLE || (N < M && N <= NARROW))) {  // B for everybody, A by blocks of rows
        const Index strips = (b_panels + STRIP_PANELS - 1) / STRIP_PANELS;
        const Index chunk_k = K * width <= WHOLE ? round_up(K, kc) : std::max(kc, CHUNK / width / kc * kc);
        const Index copy = (std::min(K, chunk_k) + R) * width, copies = copies_of(copy, M);
        const Index a_panels = (M + MR - 1) / MR;  // shared out evenly, in as many blocks for one worker as for another
        const Index least = std::max((M + ROWS - 1) / ROWS, std::min(M / (4 * MR), Index(4) * workers));
        const Index blocks = std::min(round_up(least, workers), a_panels);
        const Index block_rows = (a_panels + blocks - 1) / blocks * MR;
        Block b_block(copies * copy);
        Block a_block(pack_a ? workers * block_rows * (kc + R) : 0);
        for (Index k0 = 0; k0 < K; k0 += chunk_k) {
            const Index depth = std::min(chunk_k, K - k0), items = (depth + kc - 1) / kc * strips;
            run(copies * items, [&](Index item, int worker) {
                const Index k = item % items / strips * kc, kn = std::min(kc, depth - k);
                const Index column = item % strips * STRIP_PANELS * NR;
                pack(b_block.data + item / items * copy + k * width + column * depth_of(k0 + k, kn), k0 + k, column, kn,
                     std::min(STRIP_PANELS * NR, N - column), worker);
            });
            run(blocks, [&](Index item, int worker) {
                const Index row = a_panels * item / blocks * MR;
                const Index rows = std::min(M, a_panels * (item + 1) / blocks * MR) - row;
                float* packed = a_block.data + worker * block_rows * (kc + R);
                const float* b_own = b_block.data + worker % copies * copy;
                for (Index k = 0; k < depth; k += kc) {
                    const Index kn = std::min(kc, depth - k);
                    const float* a_rows = a.data + row * a.row + (k0 + k) * a.column;
                    if (pack_a) pack_rows(packed, row, k0 + k, rows, kn);
                    multiply(pack_a ? packed : a_rows, pack_a ? 0 : a.row, b_own + k * width, row, 0, rows, N, k0 + k,
                             kn);
                }
            });
        }
        return;
    }

    // A for everybody, in chunks of so many rows and so many blocks of K that they fit a chunk; B by strips of columns
    Index strip_panels = std::clamp<Index>(b_panels / (4 * workers), 2, STRIP_PANELS);
    auto share = [&](Index panels) {  // of B, in panels, that the busiest worker gets
        return ((b_panels + panels - 1) / panels + workers - 1) / workers * panels;
    };
    if (share(2) < share(strip_panels)) strip_panels = 2;
    const Index strips = (b_panels + strip_panels - 1) / strip_panels;
    const Index chunk_rows = pack_a ? std::min(round_up(M, MR), round_up(Index(1024), ROWS)) : M;
    const Index chunk = 2 * kc * chunk_rows <= CHUNK ? CHUNK : WHOLE;  // many rows: the more of K at a time, the better
    const Index chunk_k = pack_a ? std::max(kc, chunk / chunk_rows / kc * kc) : round_up(K, kc);
    const Index copy = chunk_rows * (std::min(K, chunk_k) + R), copies = copies_of(copy, N);
    Block a_block(pack_a ? copies * copy : 0);
    const Index strip_size = (kc + R) * strip_panels * NR;
    Block b_block(workers * strip_size);
    for (Index m0 = 0; m0 < M; m0 += chunk_rows)
        for (Index k0 = 0; k0 < K; k0 += chunk_k) {
            const Index rows = std::min(chunk_rows, M - m0), padded_rows = round_up(rows, MR);
            const Index depth = std::min(chunk_k, K - k0), k_blocks = (depth + kc - 1) / kc;
            constexpr Index GROUP = 8;  // panels of A that are packed in one go
            const Index items = k_blocks * ((padded_rows / MR + GROUP - 1) / GROUP);
            if (pack_a)
                run(copies * items, [&](Index item, int) {
                    const Index k = item % items % k_blocks * kc, kn = std::min(kc, depth - k);
                    const Index row = item % items / k_blocks * GROUP * MR;
                    pack_rows(a_block.data + item / items * copy + k * padded_rows + row * depth_of(k0 + k, kn),
                              m0 + row, k0 + k, std::min(GROUP * MR, rows - row), kn);
                });
            // blocks of rows too where the strips alone would not keep all busy
            Index row_blocks = std::max<Index>(1, std::min(rows / (8 * MR), (4 * workers + strips - 1) / strips));
            const Index block_rows = round_up((rows + row_blocks - 1) / row_blocks, MR);
            row_blocks = (rows + block_rows - 1) / block_rows;
            run(strips * row_blocks, [&](Index item, int worker) {
                // rows outermost: a worker's share of the items is a range of tokens, the same in one op after another
                const Index column = item % strips * strip_panels * NR;
                const Index columns = std::min(strip_panels * NR, N - column);
                const Index row_begin = item / strips * block_rows;
                const Index row_end = std::min(rows, row_begin + block_rows);
                float* strip = b_block.data + worker * strip_size;
                for (Index k = 0; k < depth; k += kc) {
                    const Index kn = std::min(kc, depth - k);
                    const float* own = pack_a ? a_block.data + worker % copies * copy + k * padded_rows : nullptr;
                    pack(strip, k0 + k, column, kn, columns, worker);
                    for (Index row = row_begin; row < row_end; row += ROWS) {
                        const float* a_rows =
                            pack_a ? own + row * depth_of(k0 + k, kn) : a.data + (m0 + row) * a.row + k0 + k;
                        multiply(a_rows, pack_a ? 0 : a.row, strip, m0 + row, column, std::min(ROWS, row_end - row),
                                 columns, k0 + k, kn);
                    }
                }
            });
        }
}

}  // namespace

void matmul(float* c, Index ldc, View a, View b, Index M, Index N, Index K, bool accumulate, const Epilogue* epilogue,
            const LowRank* low_rank) {
    const bool alone = M * N * K < MIN_WORK;
    matmul_by(alone ? 1 : num_threads(), alone, c, ldc, a, b, M, N, K, accumulate, epilogue, low_rank);
}

void matmul_alone(float* c, Index ldc, View a, View b, Index M, Index N, Index K) {
    matmul_by(1, true, c, ldc, a, b, M, N, K, false, nullptr, nullptr);
}

}  // namespace npgpt
