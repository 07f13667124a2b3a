#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "error.h"

namespace npgpt {
namespace {

// A number in [0, 1), 53 bits of Philox: counter = draw, key = seed.
double uniform(const Kernels& kernels, uint64_t seed, uint64_t draw) {
    const uint32_t counter[4] = {uint32_t(draw), uint32_t(draw >> 32)}, key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
    uint32_t words[4];
    kernels.philox(words, counter, key);
    return (double(words[0] >> 5) * 67108864.0 + double(words[1] >> 6)) / 9007199254740992.0;
}

[[noreturn]] void fail_not_finite() {
    fail(NPGPT_NOT_FINITE, "sample: the model's logits are not finite (its weights are not)");
}

// Where the first of the greatest of x[at, end) is, if it is more than x[best]; else best
size_t find_greatest(const float* x, size_t at, size_t end, size_t best) {
    typedef float Four __attribute__((vector_size(16)));
    for (size_t stop; at < end; at = stop) {  // in blocks, of which few are searched again
        stop = std::min(end, at + 256);
        Four top = Four{} - INFINITY, zero = {};
        size_t i = at;
        for (Four four; i + 4 <= stop; i += 4) {
            std::memcpy(&four, x + i, sizeof(four));
            top = four > top ? four : top;
            zero += four * 0;
        }
        float greatest = std::max(std::max(top[0], top[1]), std::max(top[2], top[3]));
        for (; i < stop; i++) greatest = std::max(greatest, x[i]), zero[0] += x[i] * 0;
        if (!(zero[0] + zero[1] + zero[2] + zero[3] == 0)) fail_not_finite();
        if (greatest > x[best]) best = size_t(std::find(x + at, x + stop, greatest) - x);
    }
    return best;
}

}  // namespace

void check_sampling(const npgpt_sampling& how, size_t V) {
    const auto check = [](const char* name, double value, bool holds, const char* what) {
        if (!(holds && std::isfinite(value)))
            fail(NPGPT_BAD_ARGUMENT, "sampling: %s must be %s, got %g", name, what, value);
    };
    check("temperature", how.temperature, how.temperature >= 0, "at least 0");
    check("top_k", how.top_k, how.top_k >= 0, "at least 0");
    check("top_p", how.top_p, how.top_p >= 0 && how.top_p <= 1, "in 0..1");
    check("min_p", how.min_p, how.min_p >= 0 && how.min_p <= 1, "in 0..1");
    check("repetition_penalty", how.repetition_penalty, how.repetition_penalty > 0, "above 0");
    check("presence_penalty", how.presence_penalty, true, "finite");
    check("frequency_penalty", how.frequency_penalty, true, "finite");
    check("banned", how.banned, how.banned >= -1 && how.banned < int64_t(V), "an id or -1");
}

int32_t Sampler::sample(const Kernels& kernels, const float* logits, size_t V, const std::vector<bool>& seen,
                        const std::vector<uint32_t>& drawn, const Wishes& wishes, const npgpt_sampling& how,
                        uint64_t draw) {
    const size_t banned = how.banned >= 0 && V > 1 ? size_t(how.banned) : V;
    const std::vector<uint32_t>& allowed = wishes.allowed;
    size_t best = banned == 0 ? 1 : 0;
    if (how.temperature == 0 && how.repetition_penalty == 1 && drawn.empty() && allowed.empty() &&
        wishes.bias.empty()) {  // nothing changes their order
        if (banned < V && !std::isfinite(logits[banned])) fail_not_finite();
        if (!std::isfinite(logits[best])) fail_not_finite();
        best = find_greatest(logits, 0, banned, best);
        return int32_t(find_greatest(logits, std::min(V, banned + 1), V, best));
    }
    z.resize(V);
    best = V;  // none yet
    for (size_t i = 0; i < V; i++) {
        if (!std::isfinite(logits[i])) fail_not_finite();
        z[i] = double(logits[i]);
        if (!wishes.bias.empty()) z[i] += double(wishes.bias[i]);
        if (how.repetition_penalty != 1) {
            if (seen[i]) z[i] = z[i] > 0 ? z[i] / how.repetition_penalty : z[i] * how.repetition_penalty;
            z[i] = std::min(1e300, std::max(-1e300, z[i]));
        }
        if (!drawn.empty() && drawn[i])
            z[i] = std::min(1e300, std::max(-1e300, z[i] - how.presence_penalty - how.frequency_penalty * drawn[i]));
        if (i == banned || (!allowed.empty() && !(allowed[i / 32] >> i % 32 & 1)))
            z[i] = -INFINITY;
        else if (best == V || z[i] > z[best])
            best = i;  // the first of equals
    }
    if (best == V) fail(NPGPT_BAD_ARGUMENT, "sample: the only id that is allowed is banned");
    if (how.temperature == 0) return int32_t(best);

    // The candidates, most likely first, equals by id: only as many as the settings can keep are put in order.
    const auto before = [&](int32_t a, int32_t b) {
        return z[size_t(a)] > z[size_t(b)] || (z[size_t(a)] == z[size_t(b)] && a < b);
    };
    size_t k = how.top_k ? std::min(V, size_t(how.top_k)) : V;
    const bool few = k < V || how.top_p < 1 || how.min_p > 0;
    if (few) {
        order.resize(V);
        std::iota(order.begin(), order.end(), 0);
    }
    if (k < V) {
        const auto last = order.begin() + std::ptrdiff_t(k) - 1;
        std::nth_element(order.begin(), last, order.end(), before);
        const double least = z[size_t(*last)];  // those equal to the last stay
        k = size_t(std::partition(last + 1, order.end(), [&](int32_t i) { return z[size_t(i)] == least; }) -
                   order.begin());
    }
    const double top = z[best];
    for (double& value : z) value = std::exp((value - top) / how.temperature);  // <= 1: no temperature overflows
    if (few) {
        double total = 0;
        for (size_t i = 0; i < k; i++) total += z[size_t(order[i])];
        size_t sorted = 0, kept = 0;
        double reached = 0;  // the probability of those ahead
        for (; kept < k; kept++) {
            if (kept == sorted) {
                sorted = std::min(k, std::max<size_t>(32, 4 * sorted));
                std::partial_sort(order.begin() + std::ptrdiff_t(kept), order.begin() + std::ptrdiff_t(sorted),
                                  order.begin() + std::ptrdiff_t(k), before);
            }
            const double p = z[size_t(order[kept])] / total;
            if (kept && !(reached < how.top_p && p >= how.min_p * (1 / total))) break;
            reached += p;
        }
        for (size_t i = kept; i < V; i++) z[size_t(order[i])] = 0;
    }
    double total = 0;
    for (double value : z) total += value;
    const double target = uniform(kernels, how.seed, draw) * total;
    double reached = 0;
    size_t last = best;
    for (size_t i = 0; i < V; i++) {
        if (z[i] == 0) continue;
        last = i;
        reached += z[i];
        if (reached > target) break;
    }
    return int32_t(last);  // rounding never lands behind the last possible token
}

}  // namespace npgpt
