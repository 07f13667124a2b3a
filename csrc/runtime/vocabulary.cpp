#include "vocabulary.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "error.h"

namespace npgpt {
namespace {

constexpr int32_t CONTROL = 3, UNUSED = 5;  // of tokenizer.ggml.token_type

// GPT-2's printable stand-in for each byte: itself where it prints, else the next one from 256 on.
struct Characters {
    int16_t byte_of[512];
    Characters() {
        std::memset(byte_of, -1, sizeof(byte_of));
        int next = 256;
        for (int byte = 0; byte < 256; byte++) {
            const bool prints = (byte > 32 && byte < 127) || (byte > 160 && byte != 173);
            byte_of[prints ? byte : next++] = int16_t(byte);
        }
    }
};

// The bytes that a token's characters stand for; false where one of them stands for none.
bool unwrap(std::string_view token, const Characters& characters, std::string& bytes) {
    for (size_t i = 0; i < token.size(); i++) {
        unsigned code = uint8_t(token[i]);
        if (code >= 0x80) {  // two bytes of UTF-8 reach far enough
            if ((code & 0xE0) != 0xC0 || ++i == token.size() || (uint8_t(token[i]) & 0xC0) != 0x80) return false;
            code = (code & 31) << 6 | (uint8_t(token[i]) & 63);
        }
        if (code >= 512 || characters.byte_of[code] < 0) return false;
        bytes += char(characters.byte_of[code]);
    }
    return !bytes.empty();
}

}  // namespace

Vocabulary::Vocabulary(const Gguf& file) {
    const std::string_view model = file.text("tokenizer.ggml.model");
    const std::string_view pre = file.has("tokenizer.ggml.pre") ? file.text("tokenizer.ggml.pre") : "gpt-2";
    if (model != "gpt2" || pre != "gpt-2")
        fail(NPGPT_UNSUPPORTED, "GGUF: the tokenizer must be gpt2 with pre gpt-2, got %.*s with %.*s", shown(model),
             model.data(), shown(pre), pre.data());
    const std::vector<std::string_view> names = file.texts("tokenizer.ggml.tokens");
    std::vector<int32_t> types = file.integers("tokenizer.ggml.token_type");
    if (types.empty()) types.assign(names.size(), 1);
    if (names.empty() || names.size() != types.size() || names.size() > INT32_MAX)
        fail(NPGPT_BAD_FORMAT, "GGUF: tokenizer.ggml.tokens must be as many as token_type, got %zu and %zu",
             names.size(), types.size());
    end = int32_t(file.integer("tokenizer.ggml.eos_token_id", 0, names.size() - 1));

    const Characters characters;
    uint32_t byte_ids[256];
    std::fill(byte_ids, byte_ids + 256, UINT32_MAX);
    std::vector<uint32_t> order(names.size());  // ids by name
    for (size_t id = 0; id < names.size(); id++) {
        order[id] = uint32_t(id);
        std::string bytes;
        special.push_back(types[id] == CONTROL || types[id] == UNUSED || int32_t(id) == end);
        if (special[id])
            bytes = names[id];
        else if (!unwrap(names[id], characters, bytes))
            fail(NPGPT_BAD_FORMAT, "GGUF: token %zu, %.*s, must be of characters that stand for bytes", id,
                 shown(names[id]), names[id].data());
        if (!special[id] && bytes.size() == 1) byte_ids[uint8_t(bytes[0])] = uint32_t(id);
        tokens.push_back(std::move(bytes));
    }
    for (int byte = 0; byte < 256; byte++)
        if (byte_ids[byte] == UINT32_MAX) fail(NPGPT_BAD_FORMAT, "GGUF: no token stands for the byte %d", byte);
    std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return names[a] < names[b]; });
    const auto find = [&](std::string_view name) {
        const auto at = std::lower_bound(order.begin(), order.end(), name,
                                         [&](uint32_t id, std::string_view name) { return names[id] < name; });
        return at != order.end() && names[*at] == name ? *at : UINT32_MAX;
    };
    for (size_t i = 1; i < order.size(); i++)
        if (names[order[i]] == names[order[i - 1]])
            fail(NPGPT_BAD_FORMAT, "GGUF: the token %.*s is there twice", shown(names[order[i]]),
                 names[order[i]].data());

    std::vector<Merge> merges;
    std::string joined;
    const std::vector<std::string_view> rules = file.texts("tokenizer.ggml.merges");
    for (size_t i = 0; i < rules.size(); i++) {
        const std::string_view rule = rules[i];
        const size_t blank = rule.find(' ', 1);
        if (blank == rule.npos)
            fail(NPGPT_BAD_FORMAT, "GGUF: merge %zu, %.*s, must be two tokens", i, shown(rule), rule.data());
        const uint32_t left = find(rule.substr(0, blank)), right = find(rule.substr(blank + 1));
        // Vocabularies without merges have one that does nothing, as other readers insist on some.
        if (left != UINT32_MAX && right != UINT32_MAX && special[left] && special[right]) continue;
        joined.assign(rule.substr(0, blank)).append(rule.substr(blank + 1));
        const uint32_t token = find(joined);
        if (left == UINT32_MAX || right == UINT32_MAX || token == UINT32_MAX || special[left] || special[right] ||
            special[token])
            fail(NPGPT_BAD_FORMAT, "GGUF: merge %zu, %.*s, needs tokens that are not there", i, shown(rule),
                 rule.data());
        merges.push_back({left, right, token});
    }
    try {
        bpe = std::make_unique<Bpe>(byte_ids, merges, tokens);
    } catch (const std::invalid_argument& error) {
        fail(NPGPT_BAD_FORMAT, "GGUF: tokenizer.ggml.merges: %s", error.what());
    }
}

std::vector<int32_t> Vocabulary::encode(const char* text, size_t length) const {
    std::vector<uint32_t> ids(length);
    ids.resize(bpe->encode(reinterpret_cast<const uint8_t*>(text), length, ids.data()));
    return {ids.begin(), ids.end()};
}

}  // namespace npgpt
