#include "vocabulary.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "error.h"

namespace npgpt {
namespace {

constexpr int32_t NORMAL = 1, UNKNOWN = 2, CONTROL = 3, UNUSED = 5;  // of tokenizer.ggml.token_type

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

// Keys that change the ids of a text unless they are false, or there are none.
void check_additions(const Gguf& file) {
    for (const char* name : {"add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix",
                             "remove_extra_whitespaces", "normalizer.lowercase", "normalizer.strip_accents"}) {
        const std::string key = std::string("tokenizer.ggml.") + name;
        if (file.flag(key.c_str(), false)) fail(NPGPT_UNSUPPORTED, "GGUF: %s must be false", key.c_str());
    }
    if (file.has("tokenizer.ggml.suppress_tokens"))
        fail(NPGPT_UNSUPPORTED, "GGUF: tokenizer.ggml.suppress_tokens must be left out");
}

}  // namespace

Vocabulary::Vocabulary(const Gguf& file) {
    const std::string_view model = file.text("tokenizer.ggml.model");
    const std::string_view pre = file.has("tokenizer.ggml.pre") ? file.text("tokenizer.ggml.pre") : "gpt-2";
    if (model != "gpt2" || pre != "gpt-2")
        fail(NPGPT_UNSUPPORTED, "GGUF: tokenizer.ggml.model must be gpt2, with pre gpt-2, got %.*s with %.*s",
             shown(model), model.data(), shown(pre), pre.data());
    check_additions(file);
    const std::vector<std::string_view> names = file.texts("tokenizer.ggml.tokens");
    std::vector<int32_t> types = file.integers("tokenizer.ggml.token_type");
    if (!file.has("tokenizer.ggml.token_type")) types.assign(names.size(), NORMAL);
    if (names.empty() || names.size() != types.size() || names.size() > INT32_MAX)
        fail(NPGPT_BAD_FORMAT, "GGUF: tokenizer.ggml.token_type must have %zu elements, got %zu", names.size(),
             types.size());
    size_t used = names.size();  // behind them there is only padding
    while (used && types[used - 1] == UNUSED) used--;
    end = int32_t(file.integer("tokenizer.ggml.eos_token_id", 0, used - 1));
    more_ends[0] = int32_t(file.integer("tokenizer.ggml.eot_token_id", 0, used - 1, uint64_t(end)));
    more_ends[1] = int32_t(file.integer("tokenizer.ggml.eom_token_id", 0, used - 1, uint64_t(end)));

    const Characters characters;
    uint32_t byte_ids[256];
    std::fill(byte_ids, byte_ids + 256, UINT32_MAX);
    std::vector<uint32_t> order(names.size());  // ids by name
    for (size_t id = 0; id < names.size(); id++) {
        order[id] = uint32_t(id);
        std::string bytes;
        if (id < used && types[id] != NORMAL && types[id] != UNKNOWN && types[id] != CONTROL)
            fail(NPGPT_UNSUPPORTED,
                 "GGUF: tokenizer.ggml.token_type of %.*s (id %zu) must be normal (1), unknown (2) or control (3), or "
                 "unused (5) at the end, got %d",
                 shown(names[id]), names[id].data(), id, types[id]);
        special.push_back(types[id] != NORMAL || int32_t(id) == end);
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
    std::vector<bool> made(names.size());
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
        made[token] = true;
    }
    for (size_t id = 0; id < names.size(); id++)
        if (!special[id] && !made[id] && tokens[id].size() > 1)
            fail(NPGPT_BAD_FORMAT, "GGUF: tokenizer.ggml.merges: none makes the token %.*s", shown(names[id]),
                 names[id].data());
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
