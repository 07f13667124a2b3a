// SentencePiece's BPE: text in, ids out. A blank is written U+2581; a text is one whole, not split into words first. No Python,
// no threads of its own; encode may be called from any number of threads at once.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cache.h"
#include "merges.h"
#include "names.h"

namespace npgpt {

constexpr std::string_view WORD = "\xE2\x96\x81";  // U+2581, which is a blank before a word

struct RankedMerge {
    uint32_t left, right, token;
    uint32_t rank;  // the smallest goes first; of equals the leftmost in the text
};

// The merges of a vocabulary that has a score for each token: of any two neighbours that make a token. symbols: the text of
// each, "" for one that merges do not make; characters that stand in tokens and are none come behind them.
// std::invalid_argument for texts that no tokenizer has.
std::vector<RankedMerge> merges_of_scores(std::vector<std::string>& symbols, const std::vector<float>& scores);

class Spm {
  public:
    // symbols: the text of each id, "" for one that no text spells; from n_tokens on they are characters that are no tokens.
    // byte_ids[b]: the id of byte b. unknown: of what has neither; NO_ID: it is left out. fuse: neighbours share one.
    // words: each blank begins a piece that no merge reaches over. std::invalid_argument for ids that are no symbol's.
    [[gnu::visibility("default")]] Spm(std::vector<std::string> symbols, size_t n_tokens,
                                       const std::vector<RankedMerge>& merges, const uint32_t byte_ids[256],
                                       uint32_t unknown, bool fuse, bool words);

    size_t vocab_size() const { return n_tokens; }

    // Appends the ids of text[0..n), any bytes; prefix: as if a blank stood before it.
    [[gnu::visibility("default")]] void encode(const uint8_t* text, size_t n, bool prefix,
                                               std::vector<uint32_t>& ids) const;

  private:
    const uint8_t* piece_end(const uint8_t* at, const uint8_t* end) const;
    void encode_piece(const uint8_t* piece, size_t n, std::vector<uint32_t>& ids) const;
    void append_symbols(const uint8_t* piece, size_t n, std::vector<uint32_t>& ids) const;
    void append_without_token(std::string_view character, std::vector<uint32_t>& ids, bool& known) const;
    size_t merge(uint32_t* ids, size_t n) const;

    std::vector<std::string> symbols;
    Names characters;  // of symbols
    size_t n_tokens;
    MergeTable table;
    uint32_t byte_ids[256], unknown;
    bool fuse, words;
    bool whole;  // a merge may reach over the beginning of a word
    mutable CachePool caches;
};

}  // namespace npgpt
