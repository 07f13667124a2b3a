#include "windows.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "generator.h"

namespace npgpt {

Index Batch::counted() const {
    return std::count_if(y.begin(), y.end(), [](int32_t id) { return id >= 0; });
}

Windows::Windows(std::vector<uint16_t> ids_, Index T_, Index batch_size_, uint32_t seed_, int32_t end_of_text_)
    : ids(std::move(ids_)), T(T_), batch_size(batch_size_), seed(seed_), end_of_text(end_of_text_) {}

const Batch& Windows::of_step(Index step) {
    const Index per_epoch = (count() + batch_size - 1) / batch_size, wanted = step / per_epoch;
    if (wanted != epoch) {
        const uint32_t entropy[] = {seed, uint32_t(wanted)};
        Generator generator(entropy, 2);
        shift = wanted % 4 ? generator.below(uint32_t(ids.size())) : 0;
        order.resize(size_t(count()));
        std::iota(order.begin(), order.end(), 0);
        for (size_t i = order.size() - 1; i > 0; i--) std::swap(order[i], order[generator.up_to(uint32_t(i))]);
        epoch = wanted;
    }
    const Index first = step % per_epoch * batch_size;
    return cut(order.data() + first, std::min(batch_size, count() - first));
}

const Batch& Windows::evenly(Index first, Index keep) {
    const Index rows = std::min(batch_size, keep - first);
    spaced.clear();
    for (Index i = first; i < first + rows; i++) spaced.push_back(i * count() / keep);
    return cut(spaced.data(), rows);
}

const Batch& Windows::cut(const int64_t* windows, Index rows) {
    const Index N = Index(ids.size());
    batch.rows = rows, batch.T = T;
    batch.x.clear(), batch.y.clear();
    for (Index b = 0; b < rows; b++)
        for (Index t = 0; t < T; t++) {
            const Index place = Index(windows[b]) * T + t, at = (place + shift) % N;
            batch.x.push_back(at ? ids[size_t(at - 1)] : end_of_text);
            batch.y.push_back(place < N ? ids[size_t(at)] : -1);
        }
    return batch;
}

}  // namespace npgpt
