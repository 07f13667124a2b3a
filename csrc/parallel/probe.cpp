#include <algorithm>
#include <chrono>
#include <vector>

#include "../memory/blocks.h"
#include "../threads/pool.h"
#include "ops.h"

namespace npgpt {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

double peak_gflops(double seconds) {
    const Kernels& kernels = active_kernels();
    const Index threads = num_threads();
    std::vector<double> flops(threads);
    const double start = now();
    parallel_for(threads, [&](Index i, int) {
        float sink;
        while (now() - start < seconds) flops[i] += kernels.probe_flops(100000, &sink);
    });
    const double taken = now() - start;
    double total = 0;
    for (double f : flops) total += f;
    return total / taken / 1e9;
}

double read_bandwidth(double seconds) {
    const Kernels& kernels = active_kernels();
    constexpr Index FLOATS = Index(64) << 20, PIECE = Index(1) << 20;  // 256 MB: far more than any cache holds
    Block block(FLOATS);
    parallel_for(FLOATS / PIECE, [&](Index i, int) { std::fill_n(block.data + i * PIECE, PIECE, 1.0f); });
    std::vector<float> sums(FLOATS / PIECE);
    const double start = now();
    double floats = 0;
    while (now() - start < seconds) {
        parallel_for(FLOATS / PIECE,
                     [&](Index i, int) { sums[i] += kernels.probe_read(block.data + i * PIECE, PIECE); });
        floats += FLOATS;
    }
    return 4 * floats / (now() - start) / 1e9;
}

}  // namespace npgpt
