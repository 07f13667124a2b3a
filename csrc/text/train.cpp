#include <algorithm>
#include <cstring>
#include <queue>
#include <unordered_map>

#include "bpe.h"
#include "refuse.h"
#include "split.h"

namespace npgpt {
namespace {

constexpr uint32_t NONE = ~uint32_t(0);

uint32_t hash_bytes(const uint8_t* p, size_t n) {
    uint64_t hash = n;
    while (n) {
        uint64_t word = 0;
        const size_t size = n < 8 ? n : 8;
        std::memcpy(&word, p, size);
        hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
        hash ^= hash >> 32;
        p += size, n -= size;
    }
    return uint32_t(hash);
}

}  // namespace

void PieceCounts::add(const uint8_t* text, size_t n) {
    const uint8_t *at = text, *const end = text + n, *const table = kinds();
    while (at < end) {
        const uint8_t* next = piece_end(at, end, table);
        add_piece(at, size_t(next - at), 1);
        at = next;
    }
}

void PieceCounts::add_piece(const uint8_t* at, size_t length, uint64_t times) {
    if (length > NONE) refuse_length("train: a piece of 4 GB");
    if (2 * pieces.size() >= slots.size()) {
        slots.assign(std::max<size_t>(1 << 12, 2 * slots.size()), 0);
        for (uint32_t i = 0; i < pieces.size(); i++) {
            size_t slot = pieces[i].hash & (slots.size() - 1);
            while (slots[slot]) slot = (slot + 1) & (slots.size() - 1);
            slots[slot] = i + 1;
        }
    }
    const uint32_t hash = hash_bytes(at, length);
    size_t slot = hash & (slots.size() - 1);
    for (; slots[slot]; slot = (slot + 1) & (slots.size() - 1)) {
        Piece& piece = pieces[slots[slot] - 1];
        if (piece.hash == hash && piece.length == length && !std::memcmp(bytes.data() + piece.offset, at, length)) {
            piece.count += times;
            return;
        }
    }
    pieces.push_back({bytes.size(), uint32_t(length), hash, times});
    bytes.append(reinterpret_cast<const char*>(at), length);
    slots[slot] = uint32_t(pieces.size());
}

namespace {

// All distinct pieces as linked symbols, and for each pair how often it occurs and where its left symbol stands, in
// order. A place stays listed after another merge has taken its symbol: it is looked at again before it is used.
class Trainer {
  public:
    Trainer(const PieceCounts& text, const uint32_t byte_ids[256]) : text(text), symbols(text.bytes.size()) {
        if (symbols.size() >= NONE) refuse_length("train: distinct pieces of 4 GB");
        for (uint32_t p = 0; p < text.pieces.size(); p++) {
            const PieceCounts::Piece& piece = text.pieces[p];
            const uint32_t first = uint32_t(piece.offset), last = first + piece.length - 1;
            for (uint32_t at = first; at <= last; at++) {
                symbols[at] = {byte_ids[uint8_t(text.bytes[at])], at > first ? at - 1 : NONE, at < last ? at + 1 : NONE,
                               p};
                if (at > first) add(at - 1, at);
            }
        }
        wait_from(0);
    }

    // Makes `token` of the best pair everywhere. False, and nothing done, where it occurs less than min_count times.
    bool merge(uint32_t token, uint64_t min_count, Merge& merge) {
        for (;; waiting.pop()) {
            if (waiting.empty()) return false;
            const Candidate top = waiting.top();
            const uint64_t count = pairs[top.pair].count;
            if (top.count == count) break;
            if (count) waiting.push({count, top.left, top.right, top.pair});  // behind the top: it has become less
        }
        const Candidate best = waiting.top();
        if (best.count < std::max<uint64_t>(min_count, 1)) return false;
        waiting.pop();
        merge = {best.left, best.right, token};
        const size_t known = pairs.size();
        const std::vector<uint32_t> places = std::move(pairs[best.pair].places);
        for (const uint32_t at : places) {
            Symbol& symbol = symbols[at];
            const uint32_t right = symbol.after;
            if (symbol.id != best.left || right == NONE || symbols[right].id != best.right) continue;
            const uint32_t before = symbol.before, after = symbols[right].after;
            if (before != NONE) take(before, at);
            if (after != NONE) take(right, after);
            symbol.id = token;
            symbol.after = after;
            symbols[right].id = NONE;
            if (after != NONE) symbols[after].before = at, add(at, after);
            if (before != NONE) add(before, at);
        }
        pairs[best.pair].count = 0;
        wait_from(known);
        return true;
    }

  private:
    struct Symbol {
        uint32_t id, before, after, piece;  // before, after: places in the same piece
    };
    struct Pair {
        uint32_t left, right;
        uint64_t count = 0;
        std::vector<uint32_t> places;
    };
    struct Candidate {
        uint64_t count;
        uint32_t left, right, pair;
        bool operator<(const Candidate& other) const {  // comes later
            if (count != other.count) return count < other.count;
            return left != other.left ? left > other.left : right > other.right;
        }
    };

    Pair& pair_of(uint32_t left, uint32_t right) {
        const auto found = numbers.try_emplace(uint64_t(left) << 32 | right, uint32_t(pairs.size()));
        if (found.second) pairs.push_back({left, right, 0, {}});
        return pairs[found.first->second];
    }
    void add(uint32_t left, uint32_t right) {
        Pair& pair = pair_of(symbols[left].id, symbols[right].id);
        pair.count += text.pieces[symbols[left].piece].count;
        pair.places.push_back(left);
    }
    void take(uint32_t left, uint32_t right) {
        pair_of(symbols[left].id, symbols[right].id).count -= text.pieces[symbols[left].piece].count;
    }
    void wait_from(size_t first) {
        for (size_t p = first; p < pairs.size(); p++)
            if (pairs[p].count) waiting.push({pairs[p].count, pairs[p].left, pairs[p].right, uint32_t(p)});
    }

    const PieceCounts& text;
    std::vector<Symbol> symbols;
    std::vector<Pair> pairs;
    std::unordered_map<uint64_t, uint32_t> numbers;  // left << 32 | right -> its place in pairs
    std::priority_queue<Candidate> waiting;          // a pair is never more frequent than it says here
};

}  // namespace

std::vector<Merge> train_bpe(const PieceCounts& text, const uint32_t byte_ids[256], size_t count, uint64_t min_count) {
    Trainer trainer(text, byte_ids);
    std::vector<Merge> merges;
    for (Merge merge; merges.size() < count && trainer.merge(uint32_t(256 + merges.size()), min_count, merge);)
        merges.push_back(merge);
    return merges;
}

}  // namespace npgpt
