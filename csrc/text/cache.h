// The ids of pieces of text met before, each in one cache line, the latest in the place of the one before.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "refuse.h"

namespace npgpt {

struct PieceCache {
    static constexpr size_t KEY = 24, IDS = 9, SIZE = 1 << 15;
    struct alignas(64) Entry {
        uint64_t key[3];
        uint32_t ids[IDS];
        uint8_t length, count;  // count 0: empty

        bool holds(const uint64_t of[3], size_t n) const {
            return length == n && key[0] == of[0] && key[1] == of[1] && key[2] == of[2] && count;
        }
        // Keeps `of` and its ids, if there are some, and not too many.
        void keep(const uint64_t of[3], size_t n, const uint32_t* found, size_t many) {
            if (many == 0 || many > IDS) return;
            std::memcpy(key, of, sizeof(key));
            std::memcpy(ids, found, many * sizeof(uint32_t));
            length = uint8_t(n), count = uint8_t(many);
        }
    };

    // calloc: its pages are touched, and paid for, only as they are used
    PieceCache() : block(std::calloc(SIZE + 1, sizeof(Entry))) {
        if (!block) lack_memory();
        entries = reinterpret_cast<Entry*>((reinterpret_cast<uintptr_t>(block) + 63) & ~uintptr_t(63));
    }
    ~PieceCache() { std::free(block); }
    PieceCache(const PieceCache&) = delete;

    // The entry in which piece[0..n), n <= KEY, is or will be, and its key; `end` is where readable memory ends.
    Entry& at(const uint8_t* piece, size_t n, const uint8_t* end, uint64_t key[3]) {
        constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15u;
        if (size_t(end - piece) >= KEY) {
            std::memcpy(key, piece, KEY);
            for (size_t i = 0; i < 3; i++) {
                const size_t before = 8 * i;
                if (n < before + 8) key[i] &= n <= before ? 0 : ~uint64_t(0) >> (8 * (before + 8 - n));
            }
        } else {
            std::memset(key, 0, KEY);
            std::memcpy(key, piece, n);
        }
        uint64_t hash = (key[0] ^ (key[1] * GOLDEN) ^ (key[2] * 0xC2B2AE3D27D4EB4Fu) ^ n) * GOLDEN;
        hash = (hash ^ (hash >> 32)) * GOLDEN;
        return entries[hash >> (64 - 15)];
    }

    void* block;
    Entry* entries;
};

// Caches that wait for the next text; any number of threads may take one. Atomic places, not a lock: there is none where
// the C++ library has no threads.
class CachePool {
  public:
    CachePool() = default;
    CachePool(const CachePool&) = delete;
    ~CachePool() {
        for (auto& place : places) delete place.load();
    }
    std::unique_ptr<PieceCache> take() {
        for (auto& place : places)
            if (PieceCache* const cache = place.exchange(nullptr, std::memory_order_acquire))
                return std::unique_ptr<PieceCache>(cache);
        return std::make_unique<PieceCache>();
    }
    void give(std::unique_ptr<PieceCache> cache) {
        for (auto& place : places) {
            PieceCache* none = nullptr;
            if (!place.compare_exchange_strong(none, cache.get(), std::memory_order_release)) continue;
            [[maybe_unused]] const PieceCache* const kept = cache.release();  // by the place
            return;
        }
    }

  private:
    std::atomic<PieceCache*> places[64] = {};
};

}  // namespace npgpt
