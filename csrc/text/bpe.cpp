#include "bpe.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <queue>

#include "refuse.h"

namespace npgpt {
namespace {

constexpr uint32_t NONE = ~uint32_t(0);
constexpr size_t LONG = 256;  // bytes, from which it is too slow to look through the piece for each next merge

}  // namespace

// ---- merges

Bpe::Bpe(const uint32_t byte_ids_[256], const std::vector<Merge>& merges, const std::vector<std::string>& tokens,
         Split split_, std::vector<uint32_t> whole_pieces)
    : split(split_), table(merges.size()), by_rank(merges), whole(std::move(whole_pieces)) {
    std::copy(byte_ids_, byte_ids_ + 256, byte_ids);
    offsets.push_back(0);
    for (const std::string& token : tokens) {
        bytes += token;
        offsets.push_back(bytes.size());
    }
    const auto check = [&](uint32_t id) {
        if (id >= tokens.size()) refuse("Bpe: id " + std::to_string(id) + " is no token's");
    };
    for (uint32_t id : byte_ids)
        if (id != NO_ID) check(id);
    for (size_t rank = 0; rank < merges.size(); rank++) {
        const Merge& merge = merges[rank];
        check(merge.left), check(merge.right), check(merge.token);
        if (!table.add(merge.left, merge.right, {uint32_t(rank), merge.token})) refuse("Bpe: a pair has two merges");
    }
    for (uint32_t id : whole) check(id);
    // by heap: in less code than other sorts
    const auto before = [&](uint32_t a, uint32_t b) {
        const int order = token(a).compare(token(b));
        return order < 0 || (order == 0 && a < b);
    };
    std::make_heap(whole.begin(), whole.end(), before);
    std::sort_heap(whole.begin(), whole.end(), before);
}

// ---- encoding

size_t Bpe::encode(const uint8_t* text, size_t n, uint32_t* ids) const {
    if (!n) return 0;
    const uint8_t *at = text, *const end = text + n, *const characters = kinds();
    uint32_t *out = ids, *const room = ids + n;
    auto cache = caches.take();
    while (at < end) {
        const uint8_t* next =
            split == Split::GPT2 ? piece_end(at, end, characters) : piece_end(split, at, end, characters);
        const size_t length = size_t(next - at);
        if (length <= PieceCache::KEY) {
            uint64_t key[3];
            PieceCache::Entry& entry = cache->at(at, length, end, key);
            if (entry.holds(key, length)) {
                if (size_t(room - out) >= PieceCache::IDS)
                    std::memcpy(out, entry.ids, sizeof(entry.ids));  // a fixed size: faster than just those
                else
                    std::memcpy(out, entry.ids, entry.count * sizeof(uint32_t));
                out += entry.count;
            } else {
                const size_t count = encode_any(at, length, out);
                entry.keep(key, length, out, count);
                out += count;
            }
        } else {
            out += encode_any(at, length, out);
        }
        at = next;
    }
    caches.give(std::move(cache));
    return size_t(out - ids);
}

size_t Bpe::encode_any(const uint8_t* piece, size_t size, uint32_t* ids) const {
    if (!whole.empty()) {
        const std::string_view text(reinterpret_cast<const char*>(piece), size);
        const auto found = std::lower_bound(whole.begin(), whole.end(), text,
                                            [&](uint32_t id, std::string_view text) { return token(id) < text; });
        if (found != whole.end() && token(*found) == text) return *ids = *found, 1;
    }
    size_t n = 0;
    for (size_t i = 0; i < size; i++) {
        ids[n] = byte_ids[piece[i]];
        n += ids[n] != NO_ID;  // what is no token is written over
    }
    return n < LONG ? merge_short(ids, n) : merge_long(ids, n);
}

// n < LONG: looks through the ids for the next merge.
size_t Bpe::merge_short(uint32_t* ids, size_t n) const {
    uint32_t ranks[LONG];
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
size_t Bpe::merge_long(uint32_t* ids, size_t n) const {
    if (n >= NONE) refuse_length("encode: a piece of 4 GB");
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
