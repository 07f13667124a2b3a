#include "session.h"

#include <algorithm>

#include "error.h"

namespace npgpt {

constexpr size_t GUESSES = WIDE - 2;  // with the id before them as many as go through one token's path

// The cache is mapped, not allocated: only what a text has reached takes memory.
Session::Session(std::shared_ptr<Model> model_, Index context) : model(std::move(model_)), version(model->version) {
    const npgpt_config& c = model->config;
    cache.context = context ? context : c.block_size;
    logits.resize(size_t(c.vocab_size));
    seen.resize(size_t(c.vocab_size));
    text.reserve(size_t(cache.context));
    drawn.reserve(size_t(c.vocab_size));
    sampler.reserve(size_t(c.vocab_size));
    work.reserve(*model, cache.context);
    const uint64_t floats =
        uint64_t(c.n_layer) * uint64_t(c.n_kv_head) * uint64_t(c.head_size) * uint64_t(cache.context);
    if (floats > std::min<uint64_t>(uint64_t(1) << 44, size_t(-1) / 16)) fail_memory();
    cache.keys = static_cast<float*>(reserve_memory(2 * size_t(floats) * sizeof(float)));
    cache.values = cache.keys + floats;
}

Session::~Session() { give_reserved(cache.keys, 2 * size_t(cache.values - cache.keys) * sizeof(float)); }

void Session::reset() {
    forget();
    seen.assign(seen.size(), false);
    drawn.clear();
    draws = 0;
}

void Session::forget() {
    text.clear();
    guesses.clear();
    length = 0;
    has_logits = false;
}

void Session::rewind(size_t count) {
    if (count > size_t(length))
        fail(NPGPT_BAD_ARGUMENT, "rewind: count must be at most the %td tokens in the cache, got %zu",
             std::ptrdiff_t(length), count);
    text.erase(text.begin(), text.end() - std::ptrdiff_t(length));  // what the cache has forgotten
    text.resize(count);
    guesses.clear();
    length = Index(count);
    has_logits = false;
    seen.assign(seen.size(), false);
    for (const int32_t id : text) seen[size_t(id)] = true;
    drawn.clear();
    draws = 0;
}

// copy(numbers of a head in the cache, their place among those that are saved, how many)
template <class Copy>
void Session::each_head(size_t first, size_t count, Copy&& copy) const {
    const npgpt_config& c = model->config;
    const size_t KV = size_t(c.n_kv_head), D = size_t(c.head_size), context = size_t(cache.context), n = count * D;
    for (size_t layer = 0; layer < size_t(c.n_layer); layer++)
        for (size_t head = 0; head < KV; head++) {
            const size_t at = ((layer * KV + head) * context + first) * D, saved = (2 * layer * KV + head) * n;
            copy(cache.keys + at, saved, n), copy(cache.values + at, saved + KV * n, n);
        }
}

void Session::save(size_t first, size_t count, float* data) const {
    if (first > size_t(length) || count > size_t(length) - first)
        fail(NPGPT_BAD_ARGUMENT, "save: the tokens must be among the %td in the cache, got %zu from %zu on",
             std::ptrdiff_t(length), count, first);
    if (version != model->version) fail(NPGPT_BAD_ARGUMENT, "save: the model has changed since the text was read");
    each_head(first, count, [&](const float* head, size_t at, size_t n) { std::copy_n(head, n, data + at); });
}

void Session::load(const int32_t* ids, size_t count, const float* data, const float* behind) {
    check(ids, count);
    if (count > size_t(cache.context - length))
        fail(NPGPT_FULL, "load: the context of %td tokens holds %td, %zu more do not fit",
             std::ptrdiff_t(cache.context), std::ptrdiff_t(length), count);
    if (length && version != model->version)
        fail(NPGPT_BAD_ARGUMENT, "load: the model has changed since the text was read");
    version = model->version;
    each_head(size_t(length), count, [&](float* head, size_t at, size_t n) { std::copy_n(data + at, n, head); });
    append(ids, count);
    guesses.clear();
    length += Index(count);
    has_logits = behind != nullptr;
    if (behind) std::copy_n(behind, logits.size(), logits.data());
}

void Session::check(const int32_t* ids, size_t count) const {
    const int32_t V = model->config.vocab_size;
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= V) fail(NPGPT_BAD_ARGUMENT, "feed: ids must be in 0..%d, got %d", V - 1, ids[i]);
}

void Session::append(const int32_t* ids, size_t count) {
    for (size_t i = 0; i < count; i++) seen[size_t(ids[i])] = true;
    const size_t context = size_t(cache.context), kept = std::min(count, context);
    if (text.size() + kept > context)
        text.erase(text.begin(), text.begin() + std::ptrdiff_t(text.size() + kept - context));
    text.insert(text.end(), ids + count - kept, ids + count);
}

// ids go behind what the cache holds, and fit.
void Session::read(const int32_t* ids, size_t count, float* every, float* hidden) {
    const Index V = model->config.vocab_size, C = model->config.n_embd;
    for (size_t done = 0; done < count;) {
        const Index n = Index(std::min(count - done, size_t(CHUNK)));
        const bool last = done + size_t(n) == count;
        const Piece piece{cache, ids + done, n, length};
        forward(*model, work, &piece, 1,
                every  ? every + Index(done) * V
                : last ? logits.data()
                       : nullptr,
                every != nullptr, hidden ? hidden + Index(done) * C : nullptr);
        length += n;
        done += size_t(n);
    }
    if (every) std::copy_n(every + (Index(count) - 1) * V, V, logits.data());
    has_logits = true;
}

// id, and by prompt lookup (Saxena 2023) what followed it where the last two tokens stood before it once already.
std::vector<int32_t> Session::with_guesses(int32_t id) const {
    std::vector<int32_t> ids{id};
    const size_t n = text.size(), room = size_t(cache.context - length) - 1;
    for (size_t at = n; at-- > 3;)
        if (text[at - 1] == id && text[at - 2] == text[n - 1] && text[at - 3] == text[n - 2]) {
            const auto next = text.begin() + std::ptrdiff_t(at);
            ids.insert(ids.end(), next, next + std::ptrdiff_t(std::min({GUESSES, n - at, room})));
            break;
        }
    return ids;
}

// Whether id was read: as a guess that came true, or together with guesses.
bool Session::follow(int32_t id) {
    if (length == cache.context || version != model->version || !has_logits) return false;
    const size_t V = logits.size();
    if (guessed < guesses.size() && guesses[guessed] == id) {
        length++, guessed++;
    } else {
        guesses.clear(), guessed = 0;
        const std::vector<int32_t> ids = with_guesses(id);
        if (ids.size() == 1) return false;
        read(ids.data(), ids.size(), guess_logits.room((1 + GUESSES) * V), nullptr);
        guesses.assign(ids.begin() + 1, ids.end());
        length -= Index(guesses.size());
    }
    append(&id, 1);
    std::copy_n(guess_logits.data + guessed * V, V, logits.data());
    return true;
}

void Session::feed(const int32_t* ids, size_t count, float* every, float* hidden) {
    check(ids, count);
    if (speculate && count == 1 && !every && !hidden && follow(*ids)) return;
    guesses.clear();
    if (!count) fail(NPGPT_BAD_ARGUMENT, "feed: count must be at least 1");
    const size_t context = size_t(cache.context);
    const bool all = every || hidden, stale = version != model->version, fits = size_t(length) + count <= context;
    if (!fits && (all || !slide))
        fail(all ? NPGPT_BAD_ARGUMENT : NPGPT_FULL, "feed: the context of %zu tokens holds %zu, %zu more do not fit",
             context, size_t(length), count);
    const bool first = text.empty();
    version = model->version;
    append(ids, count);
    if (fits && !stale) return read(ids, count, every, hidden);
    size_t again = first ? count : fits ? size_t(length) + count : std::max<size_t>(1, context / 2);
    again = std::min(again, text.size());
    length = 0;
    const int32_t* const tokens = text.data() + (text.size() - again);
    if (!all) return read(tokens, again, nullptr, nullptr);
    if (again > count) read(tokens, again - count, nullptr, nullptr);
    read(tokens + (again - count), count, every, hidden);
}

void Session::feed_many(Session* const* sessions, const int32_t* ids, size_t count) {
    for (size_t i = 0; i < count; i++) {
        Session& session = *sessions[i];
        if (session.model != sessions[0]->model)
            fail(NPGPT_BAD_ARGUMENT, "feed_many: all sessions must be of one model");
        for (size_t k = 0; k < i; k++)
            if (sessions[k] == &session) fail(NPGPT_BAD_ARGUMENT, "feed_many: a session is there twice");
        session.check(ids + i, 1);
        if (session.is_full()) fail(NPGPT_FULL, "feed_many: the context of session %zu is full", i);
    }
    std::vector<Piece> pieces;
    std::vector<Session*> together;
    for (size_t i = 0; i < count; i++) {
        Session& session = *sessions[i];
        if (session.length == session.cache.context || session.version != session.model->version) {
            session.feed(ids + i, 1, nullptr);  // reads more than this token
            continue;
        }
        session.append(ids + i, 1);
        session.guesses.clear();
        pieces.push_back({session.cache, ids + i, 1, session.length});
        together.push_back(&session);
    }
    if (pieces.empty()) return;
    const Model& model = *sessions[0]->model;
    const Index V = model.config.vocab_size;
    Session& host = *together[0];
    float* all = pieces.size() == 1 ? host.logits.data() : host.batch_logits.room(pieces.size() * size_t(V));
    forward(model, host.work, pieces.data(), Index(pieces.size()), all, true);
    for (size_t i = 0; i < together.size(); i++) {
        if (pieces.size() > 1) std::copy_n(all + Index(i) * V, V, together[i]->logits.data());
        together[i]->length++;
        together[i]->has_logits = true;
    }
}

int32_t Session::sample(const npgpt_sampling& how) {
    if (!has_logits) fail(NPGPT_BAD_ARGUMENT, "sample: the session must have been fed");
    check_sampling(how, logits.size());
    const bool counts = how.presence_penalty != 0 || how.frequency_penalty != 0;
    if (counts) drawn.resize(logits.size());
    const int32_t id =
        sampler.sample(*model->kernels.load(), logits.data(), logits.size(), seen, drawn, wishes, how, draws);
    draws++;
    if (counts) drawn[size_t(id)]++;
    return id;
}

}  // namespace npgpt
