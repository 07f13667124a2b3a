#include "bpe.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <queue>
#include <stdexcept>

namespace npgpt {
namespace {

constexpr uint64_t EMPTY = ~uint64_t(0);
constexpr uint32_t NONE = ~uint32_t(0);
constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15u;
constexpr size_t LONG = 256;  // bytes, from which it is too slow to look through the piece for each next merge

uint64_t pair_key(uint32_t left, uint32_t right) { return uint64_t(left) << 32 | right; }

}  // namespace

// ---- the cache: ids of pieces met before, each in one cache line, the latest in the place of the one before

struct Bpe::Cache {
    static constexpr size_t KEY = 24, IDS = 9, SIZE = 1 << 15;
    struct alignas(64) Entry {
        uint64_t key[3];
        uint32_t ids[IDS];
        uint8_t length, count;  // count 0: empty
    };

    // calloc: its pages are touched, and paid for, only as they are used
    Cache() : block(std::calloc(SIZE + 1, sizeof(Entry))) {
        if (!block) throw std::bad_alloc();
        entries = reinterpret_cast<Entry*>((reinterpret_cast<uintptr_t>(block) + 63) & ~uintptr_t(63));
    }
    ~Cache() { std::free(block); }
    Cache(const Cache&) = delete;

    // The entry in which piece[0..n), n <= KEY, is or will be, and its key; `end` is where readable memory ends.
    Entry& at(const uint8_t* piece, size_t n, const uint8_t* end, uint64_t key[3]) {
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

std::unique_ptr<Bpe::Cache> Bpe::take_cache() const {
    std::lock_guard<std::mutex> lock(mutex);
    if (caches.empty()) return std::make_unique<Cache>();
    auto cache = std::move(caches.back());
    caches.pop_back();
    return cache;
}

void Bpe::give_cache(std::unique_ptr<Cache> cache) const {
    std::lock_guard<std::mutex> lock(mutex);
    caches.push_back(std::move(cache));
}

// ---- merges

Bpe::Bpe(const uint32_t byte_ids_[256], const std::vector<Merge>& merges, const std::vector<std::string>& tokens,
         Split split_, bool whole_pieces)
    : split(split_) {
    std::copy(byte_ids_, byte_ids_ + 256, byte_ids);
    offsets.push_back(0);
    for (const std::string& token : tokens) {
        bytes += token;
        offsets.push_back(bytes.size());
    }
    int bits = 4;
    while ((size_t(1) << bits) < 2 * merges.size()) bits++;
    shift = 64 - bits;
    slots.assign(size_t(1) << bits, {EMPTY, NONE});
    const auto check = [&](uint32_t id) {
        if (id >= tokens.size()) throw std::invalid_argument("Bpe: id " + std::to_string(id) + " is no token's");
    };
    for (uint32_t id : byte_ids) check(id);
    for (const Merge& merge : merges) {
        check(merge.left), check(merge.right), check(merge.token);
        const uint64_t pair = pair_key(merge.left, merge.right);
        size_t i = pair * GOLDEN >> shift;
        while (slots[i].pair != EMPTY && slots[i].pair != pair) i = (i + 1) & (slots.size() - 1);
        if (slots[i].pair == pair) throw std::invalid_argument("Bpe: a pair has two merges");
        slots[i] = {pair, uint32_t(by_rank.size())};
        by_rank.push_back(merge);
    }
    for (uint32_t id = 0; whole_pieces && id < tokens.size(); id++) whole.push_back(id);
    // by heap: in less code than other sorts
    const auto before = [&](uint32_t a, uint32_t b) {
        const int order = token(a).compare(token(b));
        return order < 0 || (order == 0 && a < b);
    };
    std::make_heap(whole.begin(), whole.end(), before);
    std::sort_heap(whole.begin(), whole.end(), before);
}

Bpe::~Bpe() = default;

// Of a pair's merge; NONE where there is none.
uint32_t Bpe::rank_of(uint32_t left, uint32_t right) const {
    const uint64_t pair = pair_key(left, right);
    size_t i = pair * GOLDEN >> shift;
    while (slots[i].pair != pair && slots[i].pair != EMPTY) i = (i + 1) & (slots.size() - 1);
    return slots[i].rank;
}

// ---- encoding

size_t Bpe::encode(const uint8_t* text, size_t n, uint32_t* ids) const {
    if (!n) return 0;
    const uint8_t *at = text, *const end = text + n, *const table = kinds();
    uint32_t *out = ids, *const room = ids + n;
    auto cache = take_cache();
    while (at < end) {
        const uint8_t* next = split == Split::GPT2 ? piece_end(at, end, table) : piece_end(split, at, end, table);
        const size_t length = size_t(next - at);
        if (length <= Cache::KEY) {
            uint64_t key[3];
            Cache::Entry& entry = cache->at(at, length, end, key);
            if (entry.length == length && entry.key[0] == key[0] && entry.key[1] == key[1] && entry.key[2] == key[2] &&
                entry.count) {
                if (size_t(room - out) >= Cache::IDS)
                    std::memcpy(out, entry.ids, sizeof(entry.ids));  // a fixed size: faster than just those
                else
                    std::memcpy(out, entry.ids, entry.count * sizeof(uint32_t));
                out += entry.count;
            } else {
                const size_t count = encode_any(at, length, out);
                if (count <= Cache::IDS) {
                    std::memcpy(entry.key, key, sizeof(key));
                    std::memcpy(entry.ids, out, count * sizeof(uint32_t));
                    entry.length = uint8_t(length), entry.count = uint8_t(count);
                }
                out += count;
            }
        } else {
            out += encode_any(at, length, out);
        }
        at = next;
    }
    give_cache(std::move(cache));
    return size_t(out - ids);
}

size_t Bpe::encode_any(const uint8_t* piece, size_t n, uint32_t* ids) const {
    if (!whole.empty()) {
        const std::string_view text(reinterpret_cast<const char*>(piece), n);
        const auto found = std::lower_bound(whole.begin(), whole.end(), text,
                                            [&](uint32_t id, std::string_view text) { return token(id) < text; });
        if (found != whole.end() && token(*found) == text) return *ids = *found, 1;
    }
    return n < LONG ? encode_piece(piece, n, ids) : encode_long_piece(piece, n, ids);
}

// n < LONG: looks through the piece for its next merge.
size_t Bpe::encode_piece(const uint8_t* piece, size_t n, uint32_t* ids) const {
    uint32_t ranks[LONG];
    for (size_t i = 0; i < n; i++) ids[i] = byte_ids[piece[i]];
    for (size_t i = 0; i + 1 < n; i++) ranks[i] = rank_of(ids[i], ids[i + 1]);
    while (n > 1) {
        const size_t i = size_t(std::min_element(ranks, ranks + n - 1) - ranks);  // the leftmost of equals
        if (ranks[i] == NONE) break;
        ids[i] = by_rank[ranks[i]].token;
        n--;
        std::memmove(ids + i + 1, ids + i + 2, (n - i - 1) * sizeof(uint32_t));
        if (i + 1 < n) {
            std::memmove(ranks + i, ranks + i + 1, (n - 1 - i) * sizeof(uint32_t));
            ranks[i] = rank_of(ids[i], ids[i + 1]);
        }
        if (i) ranks[i - 1] = rank_of(ids[i - 1], ids[i]);
    }
    return n;
}

// Any n, in linear time: the places of possible merges wait in a list for each rank, and the lists are done by rank.
// A place whose symbols another merge has taken is passed over. Order inside a list matters for pairs of equals alone.
size_t Bpe::encode_long_piece(const uint8_t* piece, size_t n, uint32_t* ids) const {
    if (n >= NONE) throw std::length_error("encode: a piece of 4 GB");
    std::vector<uint32_t> before(n), after(n);  // places of the neighbours; NONE at the ends
    std::vector<uint32_t> list_of(by_rank.size(), NONE);
    std::vector<std::vector<uint32_t>> lists;
    std::priority_queue<uint32_t, std::vector<uint32_t>, std::greater<uint32_t>> ranks;  // of the lists to be done
    const auto wait = [&](uint32_t place) {
        if (ids[place] == NONE || after[place] == NONE) return NONE;
        const uint32_t rank = rank_of(ids[place], ids[after[place]]);
        if (rank == NONE) return NONE;
        if (list_of[rank] == NONE) {
            list_of[rank] = uint32_t(lists.size());
            lists.emplace_back();
            ranks.push(rank);
        }
        lists[list_of[rank]].push_back(place);
        return rank;
    };
    for (size_t i = 0; i < n; i++) {
        ids[i] = byte_ids[piece[i]];
        before[i] = i ? uint32_t(i - 1) : NONE, after[i] = i + 1 < n ? uint32_t(i + 1) : NONE;
    }
    for (size_t i = 0; i < n; i++) wait(uint32_t(i));
    while (!ranks.empty()) {
        const uint32_t rank = ranks.top();
        ranks.pop();
        const Merge& merge = by_rank[rank];
        std::vector<uint32_t> places = std::move(lists[list_of[rank]]);
        list_of[rank] = NONE;
        if (merge.left == merge.right) std::sort(places.begin(), places.end());
        for (size_t k = 0; k < places.size(); k++) {
            const uint32_t i = places[k], j = after[i];
            if (ids[i] != merge.left || j == NONE || ids[j] != merge.right) continue;
            ids[i] = merge.token, ids[j] = NONE;
            after[i] = after[j];
            if (after[i] != NONE) before[after[i]] = i;
            uint32_t next = wait(i);
            if (before[i] != NONE) next = std::min(next, wait(before[i]));
            if (next < rank) {  // only where a vocabulary was not learnt in the order of its merges
                while (++k < places.size()) wait(places[k]);
            }
        }
    }
    size_t count = 0;
    for (uint32_t i = 0; i != NONE; i = after[i]) ids[count++] = ids[i];
    return count;
}

void Bpe::decode(const uint32_t* ids, size_t n, std::string& out) const {
    size_t size = out.size();
    for (size_t i = 0; i < n; i++) size += offsets[ids[i] + 1] - offsets[ids[i]];
    out.reserve(size);
    for (size_t i = 0; i < n; i++) out.append(bytes, offsets[ids[i]], offsets[ids[i] + 1] - offsets[ids[i]]);
}

}  // namespace npgpt
