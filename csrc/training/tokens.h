// The tokens of a text: bytes, or a byte-pair encoding that is learnt from it, as npgpt/text/tokenizer.py makes them.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../text/bpe.h"

namespace npgpt {

class Tokens {
  public:
    // size 0: bytes; else so many tokens, learnt from text[0..share * length). Throws Error where the text has too few pairs.
    Tokens(size_t size, const char* text, size_t length, double share);

    size_t size() const { return names.size(); }
    bool are_bytes() const { return !bpe; }
    int32_t end_of_text() const { return int32_t(size()) - 1; }
    std::vector<uint16_t> encode(const char* text, size_t length) const;  // and an end of text behind it
    bool begins_inside(uint16_t id) const;  // a character of UTF-8

    std::vector<std::string> names;  // of each id, as GPT-2 spells bytes; the last is the end of text
    std::vector<Merge> merges;

  private:
    std::vector<std::string> bytes;  // of each id
    std::unique_ptr<Bpe> bpe;        // none: ids are bytes
};

}  // namespace npgpt
