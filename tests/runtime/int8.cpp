// The products of int8 on every instruction set, held against plain loops at all sizes around the groups and blocks.
// test_programs.py builds it with libnpgpt. Exit 0 and "all holds", or what does not.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../../csrc/kernels/kernels.h"

using namespace npgpt;

static uint32_t state = 1;
static uint32_t random_bits() { return state = state * 1664525u + 1013904223u, state >> 8; }
static float uniform() { return float(random_bits() % 20001) / 10000 - 1; }

static void need(bool holds, const char* what, const Kernels& kernels, Index N, Index K, Index M) {
    if (holds) return;
    std::printf("%s: %s, N %td K %td M %td\n", kernels.name, what, N, K, M);
    std::exit(1);
}

// Where the float16 numbers of a block stand
static std::vector<Index> halves(WeightType type) {
    switch (type) {
        case Q4_1:
        case Q5_1:
        case Q4_K:
        case Q5_K: return {0, 2};
        case Q2_K: return {80, 82};
        case Q3_K: return {108};
        case Q6_K: return {208};
        default: return {0};
    }
}

// Weights: every byte that there is, scales from 2^-14 to 2. Their values: unpack_rows's, which test_programs.py holds to NumPy
static std::vector<uint8_t> weights(const Kernels& kernels, WeightType type, Index N, Index K,
                                    std::vector<float>& values) {
    std::vector<uint8_t> data(size_t(N * row_bytes(type, K)));
    const Index length = block_length(type), bytes = row_bytes(type, length);
    for (uint8_t& byte : data) byte = uint8_t(random_bits());
    for (Index block = 0; block < N * K / length; block++)
        for (const Index at : halves(type)) {
            const uint16_t half = uint16_t((1 + random_bits() % 15) << 10 | (random_bits() & 1) << 15);
            std::memcpy(data.data() + block * bytes + at, &half, 2);
        }
    values.resize(size_t(N * K));
    kernels.unpack_rows(values.data(), {data.data(), type, N, K}, 0, N, 0, K);
    return data;
}

static void check(const Kernels& kernels, const Kernels* twin, WeightType type, Index N, Index K, Index M) {
    std::vector<float> values, old, x(M * K), y(M * N), bias(N);
    const std::vector<uint8_t> data = weights(kernels, type, N, K, values);
    const Matrix w{data.data(), type, N, K};
    for (float& v : x) v = uniform() * (random_bits() % 5 ? 1 : 30);
    for (float& v : y) v = uniform();
    for (float& v : bias) v = uniform();
    for (Index i = 0; i < 32; i++) x[size_t(i)] = 0;  // a block of zeros
    old = y;
    std::vector<Int8Block> blocks(M * K / 32);
    kernels.round_int8(blocks.data(), x.data(), 0, M, M, K);
    for (Index m = 0; m < M; m++)
        for (Index k = 0; k < K; k += 32) {
            const Int8Block& block = blocks[size_t(k / 32 * M + m)];
            const float* from = x.data() + m * K + k;
            float most = 0;
            int32_t sums[2] = {};
            for (Index i = 0; i < 32; i++) most = std::fmax(most, std::fabs(from[i])), sums[i / 16] += block.q[i];
            need(block.scale == most / 127, "a block's scale", kernels, N, K, M);
            need(block.sums[0] == sums[0] && block.sums[1] == sums[1] &&
                     block.sum == block.scale * float(sums[0] + sums[1]) &&
                     block.minus_8_sums == -8 * (sums[0] + sums[1]),
                 "a block's sums", kernels, N, K, M);
            for (Index i = 0; i < 32; i++)
                need(block.q[i] == int8_t(std::nearbyint(from[i] * (most > 0 ? 127 / most : 0))), "rounding", kernels,
                     N, K, M);
        }
    kernels.matvec_int8(y.data(), N, blocks.data(), w, 0, N, M, true, bias.data());
    for (Index m = 0; m < M; m++)
        for (Index n = 0; n < N; n++) {
            const double before = old[size_t(m * N + n)], offset = bias[size_t(n)];
            double sum = before + offset, size = std::fabs(before) + std::fabs(offset);
            for (Index k = 0; k < K; k++) {
                const Int8Block& block = blocks[size_t(k / 32 * M + m)];
                const double product = double(block.scale) * block.q[k % 32] * values[size_t(n * K + k)];
                sum += product, size += std::fabs(product);
            }
            need(std::fabs(y[size_t(m * N + n)] - sum) <= 1e-6 * size, "a product", kernels, N, K, M);
        }
    std::vector<float> other(y.size());
    for (Index m = 0; m < M; m++) {  // alone, and cut anywhere: the same bits
        std::vector<Int8Block> one(K / 32);
        kernels.round_int8(one.data(), x.data() + m * K, 0, 1, 1, K);
        std::memcpy(other.data() + m * N, old.data() + m * N, size_t(N) * 4);
        const Index cut = Index(random_bits()) % N;
        kernels.matvec_int8(other.data() + m * N, N, one.data(), w, 0, cut, 1, true, bias.data());
        kernels.matvec_int8(other.data() + m * N + cut, N, one.data(), w, cut, N - cut, 1, true, bias.data());
    }
    need(!std::memcmp(other.data(), y.data(), y.size() * 4), "a row alone", kernels, N, K, M);
    if (twin) {
        std::memcpy(other.data(), old.data(), old.size() * 4);
        twin->matvec_int8(other.data(), N, blocks.data(), w, 0, N, M, true, bias.data());
        need(!std::memcmp(other.data(), y.data(), y.size() * 4), "the same bits with and without VNNI", kernels, N, K,
             M);
    }
    kernels.matvec_int8(other.data(), N, blocks.data(), w, 0, N, M, false, nullptr);  // what was there does not count
    for (size_t i = 0; i < y.size(); i++) y[i] = std::nanf("");
    kernels.matvec_int8(y.data(), N, blocks.data(), w, 0, N, M, false, nullptr);
    need(!std::memcmp(other.data(), y.data(), y.size() * 4), "overwriting", kernels, N, K, M);
}

static void check_broken(const Kernels& kernels) {  // what is not finite stays so
    float x[32] = {1, 2, 3};
    Int8Block block;
    for (const float broken : {INFINITY, -INFINITY, std::nanf("")}) {
        x[7] = broken;
        kernels.round_int8(&block, x, 0, 1, 1, 32);
        need(!std::isfinite(block.scale), "a block that is not finite", kernels, 0, 32, 1);
    }
}

int main() {
    int count;
    const Kernels* const* all = available_kernels(&count);
    for (int i = 0; i < count; i++) {
        const Kernels* twin = std::strcmp(all[i]->name, "avx512vnni") ? nullptr : find_kernels("avx2");
        check_broken(*all[i]);
        for (int t = F32; t < COLUMNS; t++) {
            const WeightType type = WeightType(t);
            const Index length = block_length(type);
            if (length == 1) continue;
            for (Index N = 1; N <= 35; N++)
                for (const Index K : {length, 2 * length, 3 * length, 288 / length * length})
                    for (const Index M : {1, 2, 3, 8}) check(*all[i], twin, type, N, K, M);
            for (const Index M : {5, 31, 127, 128}) check(*all[i], twin, type, 50, 768, M);
        }
        std::printf("%s ", all[i]->name);
    }
    std::puts("all holds");
}
