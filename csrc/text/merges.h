// Which two ids that stand side by side become one, and which go first.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace npgpt {

constexpr uint32_t NO_ID = UINT32_MAX;  // of what has no token

class MergeTable {
  public:
    struct Found {
        uint32_t rank;   // the smallest goes first; NO_ID: the pair has no merge
        uint32_t token;  // the id that takes the pair's place
    };

    explicit MergeTable(size_t count) {  // with room for so many
        int bits = 4;
        while ((size_t(1) << bits) < 2 * count) bits++;
        shift = 64 - bits;
        slots.assign(size_t(1) << bits, {EMPTY, {NO_ID, NO_ID}});
    }

    // False for a pair that is there.
    bool add(uint32_t left, uint32_t right, Found found) {
        Slot& slot = slots[place(left, right)];
        if (slot.pair != EMPTY) return false;
        slot = {key(left, right), found};
        return true;
    }

    Found find(uint32_t left, uint32_t right) const { return slots[place(left, right)].found; }

  private:
    static constexpr uint64_t EMPTY = ~uint64_t(0);
    struct Slot {  // open addressing, a power of two of them
        uint64_t pair;
        Found found;
    };
    static uint64_t key(uint32_t left, uint32_t right) { return uint64_t(left) << 32 | right; }
    size_t place(uint32_t left, uint32_t right) const {
        const uint64_t pair = key(left, right);
        size_t i = pair * 0x9E3779B97F4A7C15u >> shift;
        while (slots[i].pair != pair && slots[i].pair != EMPTY) i = (i + 1) & (slots.size() - 1);
        return i;
    }
    std::vector<Slot> slots;
    int shift;  // 64 - log2(slots)
};

}  // namespace npgpt
