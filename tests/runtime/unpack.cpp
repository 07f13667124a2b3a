// `unpack ISA TYPE N K FIRST COUNT`: reads a matrix (N,K) of a WeightType by its number, and writes columns [FIRST, FIRST + COUNT)
// as unpack_rows makes them. test_programs.py builds it with libnpgpt and holds it to NumPy.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../csrc/kernels/kernels.h"

int main(int, char** words) {
    using namespace npgpt;
    const Kernels* kernels = find_kernels(words[1]);
    const WeightType type = WeightType(std::atoi(words[2]));
    const Index N = std::atol(words[3]), K = std::atol(words[4]), first = std::atol(words[5]),
                count = std::atol(words[6]);
    std::vector<uint8_t> data(size_t(N * row_bytes(type, K)));
    std::vector<float> values(size_t(N * count));
    if (!kernels || std::fread(data.data(), 1, data.size(), stdin) != data.size()) return 1;
    kernels->unpack_rows(values.data(), {data.data(), type, N, K}, 0, N, first, count);
    return std::fwrite(values.data(), 4, values.size(), stdout) != values.size();
}
