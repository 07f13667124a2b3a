#include "spm.h"

#include <algorithm>
#include <functional>
#include <queue>
#include <utility>

#include "refuse.h"
#include "split.h"

namespace npgpt {
namespace {

// The bytes of the blank at `at` < end, in either form; 0 if there is none.
size_t blank(const uint8_t* at, const uint8_t* end) {
    if (*at == ' ') return 1;
    return end - at > 2 && at[0] == 0xE2 && at[1] == 0x96 && at[2] == 0x81 ? 3 : 0;
}

size_t length_of(const uint8_t* at, const uint8_t* end) { return character_at(at, end, kinds()).length; }

const uint8_t* begin_of(std::string_view text) { return reinterpret_cast<const uint8_t*>(text.data()); }

bool is_character(std::string_view text) {
    return !text.empty() && length_of(begin_of(text), begin_of(text) + text.size()) == text.size();
}

bool ends_with(std::string_view text, std::string_view end) {
    return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

}  // namespace

std::vector<RankedMerge> merges_of_scores(std::vector<std::string>& symbols, const std::vector<float>& scores) {
    const size_t n = symbols.size();
    std::vector<std::string> rare;  // characters that are no tokens
    const Names names({symbols.begin(), symbols.end()});
    std::vector<float> order(scores);
    std::make_heap(order.begin(), order.end(), std::greater<float>());
    std::sort_heap(order.begin(), order.end(), std::greater<float>());
    order.erase(std::unique(order.begin(), order.end()), order.end());

    const auto id_of = [&](std::string_view text) {
        const uint32_t id = names.find(text);
        if (id != NO_ID) return id;
        const auto at = std::find(rare.begin(), rare.end(), text);
        return at == rare.end() ? NO_ID : uint32_t(n + size_t(at - rare.begin()));
    };
    std::vector<RankedMerge> merges;
    for (const bool cuts : {false, true})  // first the characters, then the merges
        for (size_t id = 0; id < n; id++) {
            const std::string_view name = symbols[id];
            if (name.size() > 1024) refuse("a token must have at most 1024 bytes");
            const auto rank = std::lower_bound(order.begin(), order.end(), scores[id], std::greater<float>());
            for (size_t at = 0, length; at < name.size(); at += length) {
                length = length_of(begin_of(name) + at, begin_of(name) + name.size());
                const std::string_view character = name.substr(at, length);
                if (!cuts && length < name.size() && id_of(character) == NO_ID) rare.emplace_back(character);
                if (rare.size() > 256) refuse("at most 256 characters of tokens may be no tokens");
                const uint32_t left = cuts ? id_of(name.substr(0, at)) : NO_ID;
                const uint32_t right = left == NO_ID ? NO_ID : id_of(name.substr(at));
                if (right != NO_ID) merges.push_back({left, right, uint32_t(id), uint32_t(rank - order.begin())});
            }
        }
    symbols.insert(symbols.end(), rare.begin(), rare.end());
    return merges;
}

// The texts of those symbols that are characters; "" for the others.
static std::vector<std::string_view> characters_of(const std::vector<std::string>& symbols) {
    std::vector<std::string_view> found(symbols.begin(), symbols.end());
    for (std::string_view& text : found)
        if (!is_character(text)) text = "";
    return found;
}

Spm::Spm(std::vector<std::string> symbols_, size_t n_tokens_, const std::vector<RankedMerge>& merges,
         const uint32_t byte_ids_[256], uint32_t unknown_, bool fuse_, bool words_)
    : symbols(std::move(symbols_)),
      characters(characters_of(symbols)),
      n_tokens(n_tokens_),
      table(merges.size()),
      unknown(unknown_),
      fuse(fuse_),
      words(words_) {
    const auto check = [&](uint32_t id, size_t below) {
        if (id >= below) refuse("Spm: id " + std::to_string(id) + " is no token's");
    };
    if (n_tokens > symbols.size()) refuse("Spm: n_tokens must be at most the symbols");
    whole = characters.find(WORD) == NO_ID;
    for (const RankedMerge& merge : merges) {
        check(merge.left, symbols.size()), check(merge.right, symbols.size()), check(merge.token, n_tokens);
        if (!table.add(merge.left, merge.right, {merge.rank, merge.token})) refuse("Spm: a pair has two merges");
        whole = whole || (!ends_with(symbols[merge.left], WORD) && symbols[merge.right].rfind(WORD, 0) == 0);
    }
    std::copy(byte_ids_, byte_ids_ + 256, byte_ids);
    for (const uint32_t id : byte_ids)
        if (id != NO_ID) check(id, n_tokens);
    if (unknown != NO_ID) check(unknown, n_tokens);
}

// Where the piece that begins at `at` < end is over: the text's end, unless no merge reaches over the beginning of a word.
const uint8_t* Spm::piece_end(const uint8_t* at, const uint8_t* end) const {
    if (whole && !words) return end;
    at += blank(at, end);
    while (!words && at < end && blank(at, end)) at += blank(at, end);
    while (at < end && !blank(at, end)) at += length_of(at, end);
    return at;
}

void Spm::encode(const uint8_t* text, size_t n, bool prefix, std::vector<uint32_t>& ids) const {
    const uint8_t *at = text, *const end = text + n;
    if (prefix) {
        std::string first = " ";
        const uint8_t* next = at == end || (words && blank(at, end)) ? at : piece_end(at, end);
        first.append(at, next);
        encode_piece(begin_of(first), first.size(), ids);
        at = next;
    }
    if (at == end) return;
    auto cache = caches.take();
    while (at < end) {
        const uint8_t* next = piece_end(at, end);
        const size_t length = size_t(next - at), before = ids.size();
        if (length <= PieceCache::KEY) {
            uint64_t key[3];
            PieceCache::Entry& entry = cache->at(at, length, end, key);
            if (entry.holds(key, length)) {
                ids.insert(ids.end(), entry.ids, entry.ids + entry.count);
            } else {
                encode_piece(at, length, ids);
                entry.keep(key, length, ids.data() + before, ids.size() - before);
            }
        } else {
            encode_piece(at, length, ids);
        }
        at = next;
    }
    caches.give(std::move(cache));
}

void Spm::encode_piece(const uint8_t* piece, size_t n, std::vector<uint32_t>& ids) const {
    std::vector<uint32_t> found;
    append_symbols(piece, n, found);
    found.resize(merge(found.data(), found.size()));
    for (const uint32_t id : found) {
        bool known = true;
        if (id < n_tokens)
            ids.push_back(id);
        else
            append_without_token(symbols[id], ids, known);
    }
}

void Spm::append_symbols(const uint8_t* piece, size_t n, std::vector<uint32_t>& ids) const {
    const uint8_t* const end = piece + n;
    bool known = true;
    while (piece < end) {
        const size_t is_blank = blank(piece, end), length = is_blank ? is_blank : length_of(piece, end);
        const std::string_view character(reinterpret_cast<const char*>(piece), length);
        const uint32_t id = characters.find(is_blank ? WORD : character);
        if (id == NO_ID)
            append_without_token(is_blank ? WORD : character, ids, known);
        else
            ids.push_back(id), known = true;
        piece += length;
    }
}

// Appends what stands for a character that is no token; known: whether what stood before it has one.
void Spm::append_without_token(std::string_view character, std::vector<uint32_t>& ids, bool& known) const {
    const size_t before = ids.size();
    for (const char byte : character)
        if (byte_ids[uint8_t(byte)] != NO_ID) ids.push_back(byte_ids[uint8_t(byte)]);
    if (ids.size() - before == character.size()) {
        known = true;
        return;
    }
    ids.resize(before);
    if (unknown != NO_ID && (known || !fuse)) ids.push_back(unknown);
    known = false;
}

// In n log n: possible merges wait by rank, then by place. Returns how many ids are left.
size_t Spm::merge(uint32_t* ids, size_t n) const {
    if (n >= NO_ID) refuse_length("encode: a text of 4 GB");
    using Candidate = std::pair<uint64_t, uint32_t>;  // rank and place; the merged id
    std::vector<uint32_t> before(n), after(n);  // places of the neighbours; NO_ID at the ends
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<Candidate>> waiting;
    const auto candidate = [&](uint32_t place) {
        if (ids[place] == NO_ID || after[place] == NO_ID) return Candidate{NO_ID, NO_ID};
        const MergeTable::Found found = table.find(ids[place], ids[after[place]]);
        return Candidate{uint64_t(found.rank) << 32 | place, found.token};
    };
    const auto wait = [&](uint32_t place) {
        const Candidate found = candidate(place);
        if (found.second != NO_ID) waiting.push(found);
    };
    for (size_t i = 0; i < n; i++)
        before[i] = i ? uint32_t(i - 1) : NO_ID, after[i] = i + 1 < n ? uint32_t(i + 1) : NO_ID;
    for (size_t i = 0; i < n; i++) wait(uint32_t(i));
    while (!waiting.empty()) {
        const Candidate best = waiting.top();
        waiting.pop();
        const uint32_t i = uint32_t(best.first);
        if (candidate(i) != best) continue;  // another merge has changed the pair
        const uint32_t j = after[i];
        ids[i] = best.second, ids[j] = NO_ID;
        after[i] = after[j];
        if (after[i] != NO_ID) before[after[i]] = i;
        wait(i);
        if (before[i] != NO_ID) wait(before[i]);
    }
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        if (ids[i] != NO_ID) ids[count++] = ids[i];
    return count;
}

}  // namespace npgpt
