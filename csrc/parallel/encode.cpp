#include "encode.h"

#include "throwing.h"

namespace npgpt {

constexpr size_t PART = 1 << 18;  // bytes; the text is cut at the first certain place behind each multiple

std::vector<Run> encode_text(const Bpe& bpe, const uint8_t* text, size_t n, uint32_t* ids) {
    std::vector<size_t> cuts = {0};
    for (size_t at = PART; at < n; at += PART) {
        if (at <= cuts.back()) continue;
        while (at < n && !certain_cut(bpe.pattern(), text, at)) at++;
        if (at < n) cuts.push_back(at);
    }
    cuts.push_back(n);
    std::vector<Run> runs(cuts.size() - 1);
    parallel_for_throwing(std::ptrdiff_t(runs.size()), [&](std::ptrdiff_t i, int) {
        runs[i] = {cuts[i], bpe.encode(text + cuts[i], cuts[i + 1] - cuts[i], ids + cuts[i])};
    });
    return runs;
}

}  // namespace npgpt
