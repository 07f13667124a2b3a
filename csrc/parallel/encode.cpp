#include "encode.h"

#include <exception>

#include "../threads/pool.h"

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
    std::vector<std::exception_ptr> errors(runs.size());
    parallel_for(std::ptrdiff_t(runs.size()), [&](std::ptrdiff_t i, int) {
        try {
            runs[i] = {cuts[i], bpe.encode(text + cuts[i], cuts[i + 1] - cuts[i], ids + cuts[i])};
        } catch (...) {
            errors[i] = std::current_exception();
        }
    });
    for (const std::exception_ptr& error : errors)
        if (error) std::rethrow_exception(error);
    return runs;
}

}  // namespace npgpt
