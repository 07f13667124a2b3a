#include "vocabulary.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <stdexcept>

#include "error.h"

namespace npgpt {
namespace {

enum Type : int32_t { NORMAL = 1, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE };  // of tokenizer.ggml.token_type

// llama.cpp's names of the four splits: npgpt/interop/gguf_tokenizer.py has the same table.
struct Pre {
    Split split;
    bool whole_pieces, begins;
    const char* names;  // between blanks
};
constexpr Pre PRES[] = {
    {Split::GPT2, false, false, " gpt-2 phi-2 gigachat a.x-4.0 mellum exaone4 mpt olmo jais trillion granite-docling "},
    {Split::SMOLLM, false, false, " smollm starcoder refact command-r codeshell exaone minerva-7b mellum2 "},
    {Split::LLAMA3, true, true, " llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 "},
    {Split::LLAMA3, false, false, " smaug-bpe dbrx chatglm-bpe glm4 "},
    {Split::QWEN2, false, false, " qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2 "},
};

// Older files of GPT-2 do not name its split.
const Pre& pre_of(const Gguf& file) {
    const std::string_view architecture = file.text("general.architecture");
    const bool ours = architecture == "gpt2" || architecture == "npgpt";
    const char* const key = "tokenizer.ggml.pre";
    const std::string_view name = ours && !file.has(key) ? "gpt-2" : file.text(key);
    std::string word = " ";
    word.append(name).append(" ");
    for (const Pre& pre : PRES)
        if (name.find(' ') == name.npos && std::strstr(pre.names, word.c_str())) return pre;
    fail(NPGPT_UNSUPPORTED, "GGUF: %s must be gpt-2, smollm, llama-bpe, qwen2 or another name of these, got %.*s", key,
         shown(name), name.data());
}

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
    for (const char* name : {"add_eos_token", "add_sep_token", "remove_extra_whitespaces", "normalizer.lowercase",
                             "normalizer.strip_accents"}) {
        const std::string key = std::string("tokenizer.ggml.") + name;
        if (file.flag(key.c_str(), false)) fail(NPGPT_UNSUPPORTED, "GGUF: %s must be false", key.c_str());
    }
    if (file.has("tokenizer.ggml.suppress_tokens"))
        fail(NPGPT_UNSUPPORTED, "GGUF: tokenizer.ggml.suppress_tokens must be left out");
}

std::string with_blanks(std::string_view name) {
    std::string text;
    for (size_t at; (at = name.find(WORD)) != name.npos; name.remove_prefix(at + 3))
        text.append(name.substr(0, at)) += ' ';
    return text.append(name);
}

// The byte of <0x00> to <0xFF>; -1 for another name.
int byte_of(std::string_view name) {
    for (int byte = 0; byte < 256; byte++) {
        char text[8];
        std::snprintf(text, sizeof(text), "<0x%02X>", unsigned(byte));
        if (name == text) return byte;
    }
    return -1;
}

// The ids of names, which must differ.
Names names_of(const std::vector<std::string_view>& names) {
    Names found(names);
    const uint32_t twin = found.twin();
    if (twin != NO_ID)
        fail(NPGPT_BAD_FORMAT, "GGUF: the token %.*s is there twice", shown(names[twin]), names[twin].data());
    return found;
}

// The merges of a file, as ids; `of_texts` says which tokens they may name.
template <class OfTexts>
std::vector<Merge> read_merges(const Gguf& file, const char* key, const std::vector<std::string_view>& names,
                               OfTexts&& of_texts) {
    const Names index = names_of(names);
    std::vector<Merge> merges;
    std::string joined;
    const std::vector<std::string_view> rules = file.texts(key);
    for (size_t i = 0; i < rules.size(); i++) {
        const std::string_view rule = rules[i];
        const size_t blank = rule.find(' ', 1);
        if (blank == rule.npos)
            fail(NPGPT_BAD_FORMAT, "GGUF: merge %zu, %.*s, must be two tokens", i, shown(rule), rule.data());
        const uint32_t left = index.find(rule.substr(0, blank)), right = index.find(rule.substr(blank + 1));
        // Vocabularies without merges have one that does nothing, as other readers insist on some.
        if (left != NO_ID && right != NO_ID && !of_texts(left) && !of_texts(right)) continue;
        joined.assign(rule.substr(0, blank)).append(rule.substr(blank + 1));
        const uint32_t token = index.find(joined);
        if (left == NO_ID || right == NO_ID || token == NO_ID || !of_texts(left) || !of_texts(right) ||
            !of_texts(token))
            fail(NPGPT_BAD_FORMAT, "GGUF: merge %zu, %.*s, needs tokens that are not there", i, shown(rule),
                 rule.data());
        merges.push_back({left, right, token});
    }
    return merges;
}

}  // namespace

Vocabulary::Vocabulary(const Gguf& file) {
    const std::string_view model = file.text("tokenizer.ggml.model");
    const bool sentencepiece = model == "llama";
    if (model != "gpt2" && !sentencepiece)
        fail(NPGPT_UNSUPPORTED, "GGUF: tokenizer.ggml.model must be gpt2, llama or no_vocab, got %.*s", shown(model),
             model.data());
    check_additions(file);
    const std::vector<std::string_view> names = file.texts("tokenizer.ggml.tokens");
    std::vector<int32_t> types = file.integers("tokenizer.ggml.token_type");
    if (!file.has("tokenizer.ggml.token_type")) types.assign(names.size(), NORMAL);
    if (names.empty() || names.size() != types.size() || names.size() > INT32_MAX)
        fail(NPGPT_BAD_FORMAT, "GGUF: tokenizer.ggml.token_type must have %zu elements, got %zu", names.size(),
             types.size());
    size_t used = names.size();  // behind them there is only padding
    while (used && types[used - 1] == UNUSED) used--;
    read_ends(file, used, sentencepiece);
    for (size_t id = 0; id < names.size(); id++) {
        const bool known =
            types[id] >= NORMAL && types[id] <= (sentencepiece ? BYTE : USER_DEFINED) && types[id] != UNUSED;
        if (id < used && !known)
            fail(NPGPT_UNSUPPORTED,
                 "GGUF: tokenizer.ggml.token_type of %.*s (id %zu) must be normal (1), unknown (2), control (3), "
                 "user-defined (4)%s, or unused (5) at the end, got %d",
                 shown(names[id]), names[id].data(), id, sentencepiece ? ", byte (6)" : "", types[id]);
        const bool plain = types[id] == NORMAL || types[id] == BYTE;
        const bool is_end = int32_t(id) == end || int32_t(id) == begin;
        kinds.push_back(is_end ? SPECIAL : plain ? PLAIN : types[id] == USER_DEFINED ? ADDED : SPECIAL);
        if (kinds[id] == ADDED && !names[id].empty()) added.push_back(uint32_t(id));
    }
    std::sort(added.begin(), added.end(), [&](uint32_t a, uint32_t b) { return names[a].size() > names[b].size(); });
    check_key("tokenizer.ggml.tokens", [&] {
        if (sentencepiece)
            read_sentencepiece(file, names, types, used);
        else
            read_byte_level(file, names);
    });
}

bool Vocabulary::has_key(std::string_view name) {
    const std::string_view known[] = {"normalizer", "space_prefix", "words", "fuse_unknown", "byte_fallback", "merges"};
    return std::find(std::begin(known), std::end(known), name) != std::end(known);
}

void Vocabulary::read_ends(const Gguf& file, size_t used, bool sentencepiece) {
    const auto id_of = [&](const char* key, int32_t missing) {
        return int32_t(missing < 0 ? file.integer(key, 0, used - 1)
                                   : file.integer(key, 0, used - 1, uint64_t(missing)));
    };
    end = id_of("tokenizer.ggml.eos_token_id", sentencepiece ? 2 : -1);
    more_ends[0] = id_of("tokenizer.ggml.eot_token_id", end);
    more_ends[1] = id_of("tokenizer.ggml.eom_token_id", end);
    const bool begins = file.flag("tokenizer.ggml.add_bos_token", sentencepiece || pre_of(file).begins);
    begin = begins ? id_of("tokenizer.ggml.bos_token_id", sentencepiece ? 1 : -1) : -1;
}

void Vocabulary::read_byte_level(const Gguf& file, const std::vector<std::string_view>& names) {
    const Pre& pre = pre_of(file);
    if (file.flag("tokenizer.ggml.add_space_prefix", false))
        fail(NPGPT_UNSUPPORTED, "GGUF: tokenizer.ggml.add_space_prefix must be false");
    const Characters characters;
    uint32_t byte_ids[256];
    std::fill(byte_ids, byte_ids + 256, NO_ID);
    std::vector<uint32_t> whole;
    for (size_t id = 0; id < names.size(); id++) {
        std::string bytes;
        if (kinds[id] != PLAIN)
            bytes = names[id];
        else if (!unwrap(names[id], characters, bytes))
            fail(NPGPT_BAD_FORMAT, "GGUF: token %zu, %.*s, must be of characters that stand for bytes", id,
                 shown(names[id]), names[id].data());
        if (kinds[id] == PLAIN && bytes.size() == 1) byte_ids[uint8_t(bytes[0])] = uint32_t(id);
        if (kinds[id] == PLAIN && pre.whole_pieces) whole.push_back(uint32_t(id));
        tokens.push_back(std::move(bytes));
    }
    const std::vector<Merge> merges =
        read_merges(file, "tokenizer.ggml.merges", names, [&](uint32_t id) { return kinds[id] == PLAIN; });
    std::vector<bool> made(names.size(), pre.whole_pieces);
    for (const Merge& merge : merges) made[merge.token] = true;
    for (size_t id = 0; id < names.size(); id++)
        if (kinds[id] == PLAIN && !made[id] && tokens[id].size() > 1)
            fail(NPGPT_BAD_FORMAT, "GGUF: tokenizer.ggml.merges: none makes the token %.*s", shown(names[id]),
                 names[id].data());
    bpe = std::make_unique<Bpe>(byte_ids, merges, tokens, pre.split, std::move(whole));
}

// The scores of all tokens, which must say which are made first.
static std::vector<float> read_scores(const Gguf& file, const std::vector<int32_t>& types, size_t used) {
    std::vector<float> scores = file.numbers("tokenizer.ggml.scores");
    if (scores.size() < types.size())
        fail(NPGPT_BAD_FORMAT, "GGUF: tokenizer.ggml.scores must be %zu finite numbers, got %zu", types.size(),
             scores.size());
    scores.resize(types.size());
    const float* first = nullptr;
    bool alike = used > 2;
    for (size_t id = 0; id < used; id++) {
        if (!std::isfinite(scores[id]))
            fail(NPGPT_BAD_FORMAT, "GGUF: tokenizer.ggml.scores must be finite numbers, got %g", double(scores[id]));
        if (types[id] != NORMAL) continue;
        alike = alike && (!first || *first == scores[id]);
        first = &scores[id];
    }
    if (alike && first)
        fail(NPGPT_UNSUPPORTED,
             "GGUF: tokenizer.ggml.scores must say which tokens are made first, got %g for all of them",
             double(*first));
    return scores;
}

void Vocabulary::read_prefix(const Gguf& file) {
    const bool usual = file.flag("tokenizer.ggml.add_space_prefix", true);
    const char* const key = "npgpt.space_prefix";
    const std::string_view how = file.has(key) ? file.text(key) : usual ? "prepend" : "never";
    const std::string_view known[] = {"prepend", "always", "first", "never"};  // in the order of Prefix
    const auto found = std::find(std::begin(known), std::end(known), how);
    if (found == std::end(known))
        fail(NPGPT_BAD_FORMAT, "GGUF: %s must be one of prepend, always, first, never, got %.*s", key, shown(how),
             how.data());
    prefix = Prefix(found - known);
}

void Vocabulary::read_sentencepiece(const Gguf& file, const std::vector<std::string_view>& names,
                                    const std::vector<int32_t>& types, size_t used) {
    uint32_t byte_ids[256];
    std::fill(byte_ids, byte_ids + 256, NO_ID);
    std::vector<std::string> symbols(names.size());
    size_t n_bytes = 0;
    for (size_t id = 0; id < names.size(); id++) {
        const int byte = id < used && types[id] == BYTE ? byte_of(names[id]) : -1;
        if (id < used && types[id] == BYTE && byte < 0)
            fail(NPGPT_BAD_FORMAT, "GGUF: the token %.*s (id %zu) of a byte must be <0x00> to <0xFF>", shown(names[id]),
                 names[id].data(), id);
        if (byte >= 0) byte_ids[byte] = uint32_t(id), n_bytes++;
        if (kinds[id] == PLAIN && byte < 0) symbols[id] = names[id];
        tokens.push_back(byte >= 0            ? std::string(1, char(byte))
                         : kinds[id] == PLAIN ? with_blanks(names[id])
                                              : std::string(names[id]));
    }
    if (std::find(symbols.begin(), symbols.end(), WORD) == symbols.end())
        fail(NPGPT_BAD_FORMAT, "GGUF: there must be a token %.*s, which stands for a blank", int(WORD.size()),
             WORD.data());
    if (n_bytes != 0 && n_bytes != 256)
        fail(NPGPT_BAD_FORMAT, "GGUF: there must be tokens for all 256 bytes or for none, got %zu", n_bytes);
    read_prefix(file);
    if (!file.flag("npgpt.byte_fallback", n_bytes > 0)) std::fill(byte_ids, byte_ids + 256, NO_ID);
    std::vector<RankedMerge> merges;
    if (file.has("npgpt.merges")) {
        const auto of_texts = [&](uint32_t id) { return kinds[id] == PLAIN; };
        for (const Merge& merge : read_merges(file, "npgpt.merges", names, of_texts))
            merges.push_back({merge.left, merge.right, merge.token, uint32_t(merges.size())});
    } else {
        names_of(names);
        const std::vector<float> scores = read_scores(file, types, used);
        for (size_t id = used; id < names.size(); id++) symbols[id].clear();
        merges = merges_of_scores(symbols, scores);
    }
    const char* const key = "tokenizer.ggml.unknown_token_id";
    uint32_t unknown = NO_ID;
    if (file.has(key)) {
        const uint64_t id = file.integer(key, 0, UINT32_MAX);
        if (id < used && is_special(int32_t(id))) unknown = uint32_t(id);
    }
    spm = std::make_unique<Spm>(symbols, names.size(), merges, byte_ids, unknown, file.flag("npgpt.fuse_unknown", true),
                                file.flag("npgpt.words", false));
}

std::vector<int32_t> Vocabulary::encode(const char* text, size_t length, bool begins) const {
    const std::string_view all(text, length);
    bool first_bytes[256] = {};
    for (const uint32_t id : added) first_bytes[uint8_t(tokens[id][0])] = true;
    std::vector<uint32_t> ids;
    size_t done = 0;
    Place place = begins ? BEGIN : INSIDE;
    for (size_t at = 0; at < length && !added.empty();) {
        const auto is_here = [&](uint32_t id) { return all.compare(at, tokens[id].size(), tokens[id]) == 0; };
        const auto found =
            first_bytes[uint8_t(text[at])] ? std::find_if(added.begin(), added.end(), is_here) : added.end();
        if (found == added.end()) {
            at++;
            continue;
        }
        encode_plain(all.substr(done, at - done), place, ids);
        ids.push_back(*found);
        done = at += tokens[*found].size();
        place = SEGMENT;
    }
    encode_plain(all.substr(done), place, ids);
    return {ids.begin(), ids.end()};
}

void Vocabulary::encode_plain(std::string_view text, Place place, std::vector<uint32_t>& ids) const {
    if (text.empty()) return;
    const uint8_t* const begin_of = reinterpret_cast<const uint8_t*>(text.data());
    if (spm) {
        const bool has_blank = text[0] == ' ' || text.substr(0, 3) == WORD;
        const bool wanted =
            prefix == PREPEND || (!has_blank && (prefix == ALWAYS || (prefix == FIRST && place == BEGIN)));
        spm->encode(begin_of, text.size(), place != INSIDE && wanted, ids);
        return;
    }
    const size_t before = ids.size();
    ids.resize(before + text.size());
    ids.resize(before + bpe->encode(begin_of, text.size(), ids.data() + before));
}

}  // namespace npgpt
