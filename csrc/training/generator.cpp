#include "generator.h"

#include <cmath>
#include <initializer_list>

namespace npgpt {
namespace {

uint32_t hash_mixed(uint32_t value, uint32_t& constant, uint32_t multiplier) {
    value ^= constant;
    constant *= multiplier;
    value *= constant;
    return value ^ value >> 16;
}

uint32_t mixed(uint32_t x, uint32_t y) {
    const uint32_t result = 0xCA01F9DD * x - 0x4973F715 * y;
    return result ^ result >> 16;
}

// The layers under exp(-x^2/2): wi[i] the right end of layer i in steps of 2^-23, ki[i] how many of these lie below the
// layer above, fi[i] the height there
struct Ziggurat {
    float wi[256], fi[256];
    uint32_t ki[256];

    Ziggurat() {
        double x[256];
        const auto height = [](double at) { return std::exp(-0.5 * at * at); };
        const double area = RIGHT * height(RIGHT) + std::sqrt(std::acos(-1.0) / 2) * std::erfc(RIGHT / std::sqrt(2.0));
        x[255] = RIGHT;
        for (int i = 254; i > 0; i--) x[i] = std::sqrt(-2 * std::log(area / x[i + 1] + height(x[i + 1])));
        x[0] = area / height(RIGHT);
        for (int i = 0; i < 256; i++) {
            wi[i] = float(x[i] / (1 << 23));
            fi[i] = float(height(x[i]));
            const double inner = i ? (i > 1 ? x[i - 1] : 0) : RIGHT;
            ki[i] = uint32_t(inner / x[i] * (1 << 23));
        }
        fi[0] = 1;
    }

    static constexpr double RIGHT = 3.6541528853610087963519472518;  // where the tail begins
};

}  // namespace

Generator::Generator(const uint32_t* entropy, size_t count) {
    constexpr uint32_t A = 0x931E8875, B = 0x58F38DED;
    uint32_t pool[4], constant = 0x43B0D7E5;
    for (size_t i = 0; i < 4; i++) pool[i] = hash_mixed(i < count ? entropy[i] : 0, constant, A);
    for (int from = 0; from < 4; from++)
        for (int to = 0; to < 4; to++)
            if (from != to) pool[to] = mixed(pool[to], hash_mixed(pool[from], constant, A));
    for (size_t i = 4; i < count; i++)
        for (uint32_t& word : pool) word = mixed(word, hash_mixed(entropy[i], constant, A));

    uint64_t words[4];
    constant = 0x8B51F9DD;
    for (int i = 0; i < 8; i++) {
        const uint64_t word = hash_mixed(pool[i % 4], constant, B);
        words[i / 2] = i % 2 ? words[i / 2] | word << 32 : word;
    }
    increment = (Wide(words[2]) << 64 | words[3]) << 1 | 1;
    next64();
    state += Wide(words[0]) << 64 | words[1];
    next64();
}

uint64_t Generator::next64() {
    state = state * (Wide(0x2360ED051FC65DA4) << 64 | 0x4385DF649FCCF645) + increment;
    const uint64_t high = uint64_t(state >> 64), folded = high ^ uint64_t(state);
    const unsigned turn = unsigned(high >> 58);
    return folded >> turn | folded << (-turn & 63);
}

uint32_t Generator::next32() {
    has_half = !has_half;
    if (!has_half) return half;
    const uint64_t word = next64();
    half = uint32_t(word >> 32);
    return uint32_t(word);
}

float Generator::normal() {
    static const Ziggurat z;
    constexpr float RIGHT = float(Ziggurat::RIGHT), INVERSE = float(1 / Ziggurat::RIGHT);
    for (;;) {
        const uint32_t word = next32(), layer = word & 0xFF, steps = word >> 9 & 0x7FFFFF;
        float x = float(steps) * z.wi[layer];
        if (word >> 8 & 1) x = -x;
        if (steps < z.ki[layer]) return x;
        if (layer) {
            const float at = (z.fi[layer - 1] - z.fi[layer]) * uniform() + z.fi[layer];
            if (double(at) < std::exp(-0.5 * double(x) * double(x))) return x;
            continue;
        }
        for (;;) {
            const float out = -INVERSE * std::log1p(-uniform()), up = -std::log1p(-uniform());
            if (up + up > out * out) return steps >> 8 & 1 ? -(RIGHT + out) : RIGHT + out;
        }
    }
}

uint32_t Generator::below(uint32_t n) {
    if (n == 1) return 0;
    uint64_t product = uint64_t(next32()) * n;
    if (uint32_t(product) < n)
        for (const uint32_t threshold = -n % n; uint32_t(product) < threshold;) product = uint64_t(next32()) * n;
    return uint32_t(product >> 32);
}

uint32_t Generator::up_to(uint32_t most) {
    uint32_t mask = most;
    for (int shift : {1, 2, 4, 8, 16}) mask |= mask >> shift;
    uint32_t drawn;
    do drawn = next32() & mask;
    while (drawn > most);
    return drawn;
}

}  // namespace npgpt
