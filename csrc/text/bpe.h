// Byte-level byte-pair encoding: bytes in, ids out. No Python, no threads of its own; encode and decode may be called
// from any number of threads at once.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cache.h"
#include "merges.h"
#include "split.h"

namespace npgpt {

struct Merge {
    uint32_t left, right;  // ids that stand side by side
    uint32_t token;        // the id that takes their place
};

class Bpe {
  public:
    // byte_ids[b]: the id of byte b; a byte of NO_ID is left out, and its neighbours meet. merges: the first in the list goes first. tokens[id]: its bytes. split: the pattern that
    // cuts a text into pieces. A piece that is one of the tokens whole_pieces becomes it, whatever the merges make of it.
    // std::invalid_argument for ids outside of tokens and for a pair that has two merges.
    [[gnu::visibility("default")]] Bpe(const uint32_t byte_ids[256], const std::vector<Merge>& merges,
                                       const std::vector<std::string>& tokens, Split split = Split::GPT2,
                                       std::vector<uint32_t> whole_pieces = {});

    size_t vocab_size() const { return offsets.size() - 1; }
    Split pattern() const { return split; }

    // ids, with room for n of them, of text[0..n); returns how many. Any bytes will do; no special token is looked for.
    [[gnu::visibility("default")]] size_t encode(const uint8_t* text, size_t n, uint32_t* ids) const;

    // The bytes of ids[0..n), which must be below vocab_size(), behind what `out` holds.
    [[gnu::visibility("default")]] void decode(const uint32_t* ids, size_t n, std::string& out) const;

  private:
    uint32_t rank_of(uint32_t left, uint32_t right) const { return table.find(left, right).rank; }
    size_t encode_any(const uint8_t* piece, size_t size, uint32_t* ids) const;
    size_t merge_short(uint32_t* ids, size_t n) const;
    size_t merge_long(uint32_t* ids, size_t n) const;

    Split split;
    uint32_t byte_ids[256];
    MergeTable table;
    std::vector<Merge> by_rank;
    std::string bytes;  // of all tokens, one behind the other
    std::vector<size_t> offsets;  // tokens + 1
    std::string_view token(uint32_t id) const {
        return std::string_view(bytes).substr(offsets[id], offsets[id + 1] - offsets[id]);
    }
    std::vector<uint32_t> whole;  // the ids of whole pieces, in the order of their bytes
    mutable CachePool caches;
};

// The distinct pieces of a text and how often each occurs: all that training needs of it.
class PieceCounts {
  public:
    void add(const uint8_t* text, size_t n);
    void add_piece(const uint8_t* piece, size_t length, uint64_t times);

    struct Piece {
        size_t offset;  // in bytes
        uint32_t length;
        uint32_t hash;
        uint64_t count;
    };
    std::vector<Piece> pieces;
    std::string bytes;  // of the distinct pieces, one behind the other

  private:
    std::vector<uint32_t> slots;  // piece + 1, or 0
};

// Learns up to `count` merges: always of the pair that occurs most often, of equally frequent ones the one of the
// smaller left id, then of the smaller right id. Ends before a pair that occurs less than min_count times.
// Ids are byte_ids (below 256) and then 256, 257, ... in the order of the merges: the rules of Hugging Face's BpeTrainer.
std::vector<Merge> train_bpe(const PieceCounts& text, const uint32_t byte_ids[256], size_t count, uint64_t min_count);

}  // namespace npgpt
