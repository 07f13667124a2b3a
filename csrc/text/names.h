// The ids of texts, found by the text.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

#include "merges.h"

namespace npgpt {

class Names {
  public:
    explicit Names(std::vector<std::string_view> names_) : names(std::move(names_)), order(names.size()) {
        for (size_t id = 0; id < order.size(); id++) order[id] = uint32_t(id);
        const auto before = [&](uint32_t a, uint32_t b) {
            const int sign = names[a].compare(names[b]);
            return sign < 0 || (sign == 0 && a < b);
        };
        std::make_heap(order.begin(), order.end(), before);  // in less code than other sorts
        std::sort_heap(order.begin(), order.end(), before);
    }

    // The first id of a text; NO_ID for none, and for "".
    uint32_t find(std::string_view name) const {
        const auto at = std::lower_bound(order.begin(), order.end(), name,
                                         [&](uint32_t id, std::string_view name) { return names[id] < name; });
        return !name.empty() && at != order.end() && names[*at] == name ? *at : NO_ID;
    }

    // An id whose text another has too; NO_ID for none.
    uint32_t twin() const {
        for (size_t i = 1; i < order.size(); i++)
            if (names[order[i]] == names[order[i - 1]]) return order[i];
        return NO_ID;
    }

  private:
    std::vector<std::string_view> names;
    std::vector<uint32_t> order;
};

}  // namespace npgpt
