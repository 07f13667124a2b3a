// The tokenizer inside a GGUF file: byte-level BPE with GPT-2's split, or plain bytes (the same without merges).
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "../text/bpe.h"
#include "gguf.h"

namespace npgpt {

class Vocabulary {
  public:
    explicit Vocabulary(const Gguf& file);  // throws Error

    int32_t end_of_text() const { return end; }
    bool ends(int32_t id) const { return id == end || id == more_ends[0] || id == more_ends[1]; }  // a generation
    size_t size() const { return tokens.size(); }
    bool is_special(int32_t id) const { return special[size_t(id)]; }
    const std::string& bytes(int32_t id) const { return tokens[size_t(id)]; }
    std::vector<int32_t> encode(const char* text, size_t length) const;

  private:
    std::vector<std::string> tokens;  // the bytes of each id; of a special one its name
    std::vector<bool> special;
    int32_t end, more_ends[2];  // of a turn, of a message; the end of text where there is none
    std::unique_ptr<Bpe> bpe;
};

}  // namespace npgpt
