// The tokenizer inside a GGUF file: byte-level BPE by one of the splits, plain bytes (the same without merges), or
// SentencePiece's BPE.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "../text/bpe.h"
#include "../text/spm.h"
#include "gguf.h"

namespace npgpt {

class Vocabulary {
  public:
    explicit Vocabulary(const Gguf& file);  // throws Error
    static bool has_key(std::string_view name);  // of those behind "npgpt."

    int32_t end_of_text() const { return end; }
    int32_t begin_of_text() const { return begin; }  // -1: a text begins with no special token
    bool ends(int32_t id) const { return id == end || id == more_ends[0] || id == more_ends[1]; }  // a generation
    size_t size() const { return tokens.size(); }
    bool is_special(int32_t id) const { return kinds[size_t(id)] == SPECIAL; }
    const std::string& bytes(int32_t id) const { return tokens[size_t(id)]; }
    // Of text that begins a text, or that goes on; begin_of_text is not among the ids.
    std::vector<int32_t> encode(const char* text, size_t length, bool begins = true) const;

  private:
    enum Kind : uint8_t { PLAIN, SPECIAL, ADDED };  // ADDED: cut out of a text as it stands
    void read_ends(const Gguf& file, size_t used, bool sentencepiece);
    void read_byte_level(const Gguf& file, const std::vector<std::string_view>& names);
    void read_sentencepiece(const Gguf& file, const std::vector<std::string_view>& names,
                            const std::vector<int32_t>& types, size_t used);
    enum Place { BEGIN, SEGMENT, INSIDE };  // of a text: its beginning, behind a special token, behind other text
    void read_prefix(const Gguf& file);
    void encode_plain(std::string_view text, Place place, std::vector<uint32_t>& ids) const;

    std::vector<std::string> tokens;  // the bytes of each id; of a special or added one its name
    std::vector<Kind> kinds;
    std::vector<uint32_t> added;  // the longest names first
    int32_t end, begin, more_ends[2];  // of a turn, of a message; the end of text where there is none
    std::unique_ptr<Bpe> bpe;
    std::unique_ptr<Spm> spm;
    enum Prefix {
        PREPEND,
        ALWAYS,
        FIRST,
        NEVER
    } prefix = NEVER;  // the blank before a text, as npgpt/text/spm.py has them
};

}  // namespace npgpt
