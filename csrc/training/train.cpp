// The C ABI of training: settings checked, steps done, state saved and loaded.
#include <cmath>
#include <cstring>
#include <memory>
#include <utility>

#include "../parallel/ops.h"
#include "../runtime/error.h"
#include "../runtime/memory.h"
#include "../runtime/npgpt_train.h"
#include "export.h"
#include "files.h"
#include "gpt2.h"

using namespace npgpt;

namespace {

constexpr double BETA_1 = 0.9, BETA_2 = 0.95, ADAM_EPSILON = 1e-8;
constexpr char MAGIC[] = "npgpt training 1";  // 16 bytes of a state file

// Where the part for training ends: behind a whole character of UTF-8
size_t cut_at(const std::vector<uint16_t>& ids, const Tokens& tokens, double share) {
    const double rounded = std::nearbyint(share * double(ids.size()));  // half to even, as Python's round
    size_t cut = size_t(std::fmin(std::fmax(1, rounded), double(ids.size())));
    while (cut < ids.size() && tokens.begins_inside(ids[cut])) cut++;
    return cut;
}

constexpr uint64_t HASH_OF_NOTHING = 0xCBF29CE484222325;
uint64_t hash_of(const void* data, size_t size, uint64_t hash = HASH_OF_NOTHING) {  // as FNV-1a, word by word
    const auto* at = static_cast<const unsigned char*>(data);
    for (; size; at += 8) {
        uint64_t word = 0;
        const size_t n = size < 8 ? size : 8;
        std::memcpy(&word, at, n);
        hash = (hash ^ word) * 0x100000001B3;
        hash ^= hash >> 29;
        size -= n;
    }
    return hash;
}

// What a state file begins with; params, m and v follow, then the hash of all before it
struct State {
    char magic[16];
    double lr, min_lr, weight_decay, clip, dropout, train_share;
    int64_t tokens;
    uint64_t text_size, text_hash;
    int32_t n_layer, n_head, n_embd, block_size, bpe, batch_size, steps, warmup, step, updates;
    uint32_t seed, mark;  // mark: 1, where numbers lie as here
};

void check(bool holds, const char* name, const char* what) {
    if (!holds) fail(NPGPT_BAD_ARGUMENT, "train: %s must be %s", name, what);
}

void check_config(const npgpt_train_config& c) {
    check(c.n_layer >= 1 && c.n_layer <= 1000, "n_layer", "1 to 1000");
    check(c.n_embd >= 1 && c.n_embd <= 65536, "n_embd", "1 to 65536");
    check(c.n_head >= 1 && c.n_embd % c.n_head == 0, "n_head", "a divisor of n_embd");
    check(c.block_size >= 1 && c.block_size <= 1 << 20, "block_size", "1 to 1048576");
    check(c.bpe == 0 || (c.bpe >= 257 && c.bpe <= 65536), "bpe", "0 or 257 to 65536");
    check(c.batch_size >= 1 && c.batch_size <= 1 << 20, "batch_size", "1 to 1048576");
    check(c.steps >= 1, "steps", "at least 1");
    check(c.warmup >= 0, "warmup", "at least 0");
    const auto positive = [](double x) { return x >= 0 && std::isfinite(x); };
    check(positive(c.lr), "lr", "finite and at least 0");
    check(positive(c.min_lr), "min_lr", "finite and at least 0");
    check(positive(c.weight_decay), "weight_decay", "finite and at least 0");
    check(positive(c.clip), "clip", "finite and at least 0");
    check(c.dropout >= 0 && c.dropout < 1, "dropout", "in [0, 1)");
    check(c.train_share > 0 && c.train_share <= 1, "train_share", "in (0, 1]");
    const double floats = 4.0 * c.n_embd * c.batch_size * c.block_size;  // the largest array of a step
    check(floats < double(Index(1) << 40), "batch_size", "smaller, for a context and channels of these sizes");
}

template <class T>
T* need(T* pointer, const char* name) {
    if (!pointer) fail(NPGPT_BAD_ARGUMENT, "train: %s must not be NULL", name);
    return pointer;
}

}  // namespace

struct npgpt_train {
    npgpt_train(const npgpt_train_config& config_, Tokens tokens, const std::vector<uint16_t>& ids, size_t cut)
        : config(config_),
          vocabulary(std::move(tokens)),
          text_hash(hash_of(ids.data(), ids.size() * sizeof(uint16_t))),
          text_size(ids.size()),
          model({config.n_layer, config.n_head, config.n_embd, config.block_size, Index(vocabulary.size()),
                 config.dropout, config.seed}),
          learnt(std::vector<uint16_t>(ids.begin(), ids.begin() + Index(cut)), config.block_size, config.batch_size,
                 config.seed, vocabulary.end_of_text()),
          held_out(std::vector<uint16_t>(ids.begin() + Index(cut), ids.end()), config.block_size, config.batch_size,
                   config.seed, vocabulary.end_of_text()),
          m(model.size),
          v(model.size) {
        for (Floats* moment : {&m, &v}) std::memset(moment->data, 0, size_t(model.size) * sizeof(float));
    }

    static std::unique_ptr<npgpt_train> of(const npgpt_train_config& config, const char* text, size_t length) {
        check_config(config);
        check(text && length >= 2, "text", "at least 2 bytes");
        check(length < (size_t(1) << 32) - 1, "text", "less than 4 GB");
        Tokens tokens(size_t(config.bpe), text, length, config.train_share);
        const std::vector<uint16_t> ids = tokens.encode(text, length);
        check(ids.size() > 2, "text", "at least 2 tokens");
        const size_t cut = cut_at(ids, tokens, config.train_share);
        return std::make_unique<npgpt_train>(config, std::move(tokens), ids, cut);
    }

    // As npgpt/training/schedule.py, in its order
    double rate(int32_t at) const {
        if (at <= config.warmup) return config.lr * at / config.warmup;
        const double done = double(at - config.warmup) / std::fmax(1, double(config.steps - config.warmup));
        return config.lr + (config.min_lr - config.lr) * done;
    }

    npgpt_train_progress next() {
        if (step >= config.steps) fail(NPGPT_FULL, "train: all %d steps are done", config.steps);
        const Batch& batch = learnt.of_step(step);
        const double n = double(batch.counted());
        npgpt_train_progress now = {step + 1, 0, rate(step + 1), std::nan(""), tokens + int64_t(n)};
        try {
            now.loss = model.learn(batch, now.step) * n / n;
            if (std::isfinite(now.loss)) now.grad_norm = global_norm(model.grads.data, model.size);
        } catch (...) {  // without memory: the step can be made again
            forget_gradients();
            throw;
        }
        step = now.step, tokens = now.tokens;
        if (std::isfinite(now.grad_norm))
            update(now);
        else
            forget_gradients();
        return now;
    }

    void forget_gradients() { std::memset(model.grads.data, 0, size_t(model.size) * sizeof(float)); }

    // As npgpt/engine/optim.py
    void update(const npgpt_train_progress& now) {
        updates++;
        AdamW how = {float(now.lr),
                     float(BETA_1),
                     float(BETA_2),
                     float(ADAM_EPSILON),
                     float(now.lr * config.weight_decay),
                     float(1 - std::pow(BETA_1, double(updates))),
                     float(std::sqrt(1 - std::pow(BETA_2, double(updates)))),
                     float(std::fmin(1.0, config.clip / (now.grad_norm + 1e-6)))};
        adamw_step(model.params.data, model.grads.data, m.data, v.data, model.size, model.n_decay, how);
    }

    double validate(size_t max_tokens) {
        if (!held_out.size()) fail(NPGPT_BAD_ARGUMENT, "train: train_share leaves no text to validate on");
        Index keep = held_out.count();
        if (max_tokens)
            keep = Index(std::fmin(double(keep), std::ceil(double(max_tokens) / double(config.block_size))));
        double total = 0, counted = 0;
        for (Index first = 0; first < keep; first += config.batch_size) {
            const Batch& batch = held_out.evenly(first, keep);
            const double n = double(batch.counted());
            total += model.loss(batch) * n, counted += n;
        }
        return total / counted;
    }

    State state() const {
        const npgpt_train_config& c = config;
        State s = {};
        std::memcpy(s.magic, MAGIC, sizeof(s.magic));
        s.lr = c.lr, s.min_lr = c.min_lr, s.weight_decay = c.weight_decay, s.clip = c.clip, s.dropout = c.dropout;
        s.train_share = c.train_share, s.tokens = tokens, s.text_size = text_size, s.text_hash = text_hash;
        s.n_layer = c.n_layer, s.n_head = c.n_head, s.n_embd = c.n_embd, s.block_size = c.block_size, s.bpe = c.bpe;
        s.batch_size = c.batch_size, s.steps = c.steps, s.warmup = c.warmup, s.step = step, s.updates = updates;
        s.seed = c.seed, s.mark = 1;
        return s;
    }

    std::vector<std::pair<const void*, size_t>> parts(const State& s) const {
        const size_t bytes = size_t(model.size) * sizeof(float);
        return {{&s, sizeof(s)}, {model.params.data, bytes}, {m.data, bytes}, {v.data, bytes}};
    }

    const npgpt_train_config config;
    const Tokens vocabulary;
    const uint64_t text_hash, text_size;
    Gpt2 model;
    Windows learnt, held_out;
    Floats m, v;
    int32_t step = 0, updates = 0;  // updates: without the steps that were no numbers
    int64_t tokens = 0;
};

namespace {

State state_in(const Mapping& file, const char* path) {
    State s;
    if (file.size < sizeof(s) + 8) fail(NPGPT_BAD_FORMAT, "%s: is no state of a training", path);
    std::memcpy(&s, file.data, sizeof(s));
    if (std::memcmp(s.magic, MAGIC, sizeof(s.magic))) fail(NPGPT_BAD_FORMAT, "%s: is no state of a training", path);
    uint64_t written, hash = hash_of(&s, sizeof(s));
    const size_t floats = file.size - sizeof(s) - sizeof(hash);
    for (int part = 0; part < 3; part++) hash = hash_of(file.data + sizeof(s) + floats / 3 * part, floats / 3, hash);
    std::memcpy(&written, file.data + file.size - sizeof(hash), sizeof(hash));
    if (floats % 3 || hash != written) fail(NPGPT_BAD_FORMAT, "%s: is cut off or was changed", path);
    return s;
}

std::unique_ptr<npgpt_train> load(const char* path, const char* text, size_t length) {
    const Mapping file(path);
    const State s = state_in(file, path);
    if (s.mark != 1) fail(NPGPT_UNSUPPORTED, "%s: was written where the bytes of a number lie in another order", path);
    const npgpt_train_config config = {s.n_layer,      s.n_head, s.n_embd,  s.block_size,  s.bpe,
                                       s.batch_size,   s.steps,  s.warmup,  s.lr,          s.min_lr,
                                       s.weight_decay, s.clip,   s.dropout, s.train_share, s.seed};
    auto train = npgpt_train::of(config, text, length);
    if (train->text_size != s.text_size || train->text_hash != s.text_hash)
        fail(NPGPT_BAD_ARGUMENT, "%s: was learnt from another text", path);
    const size_t bytes = size_t(train->model.size) * sizeof(float);
    if (file.size != sizeof(s) + 3 * bytes + 8) fail(NPGPT_BAD_FORMAT, "%s: is cut off or was changed", path);
    const uint8_t* at = file.data + sizeof(s);
    for (Floats* part : {&train->model.params, &train->m, &train->v}) {
        std::memcpy(part->data, at, bytes);
        at += bytes;
    }
    train->step = s.step, train->updates = s.updates, train->tokens = s.tokens;
    return train;
}

}  // namespace

void npgpt_train_default(npgpt_train_config* config) {
    if (config) *config = {4, 4, 128, 128, 0, 8, 600, 50, 0.004, 0.004 / 50, 0.1, 1.0, 0.0, 1.0, 0};
}

npgpt_status npgpt_train_new(const npgpt_train_config* config, const char* text, size_t length, npgpt_train** train,
                             npgpt_error* error) {
    return guard(error, [&] {
        need(train, "train");
        auto made = npgpt_train::of(*need(config, "config"), text, length);
        made->model.draw();
        *train = made.release();
    });
}

npgpt_status npgpt_train_load(const char* path, const char* text, size_t length, npgpt_train** train,
                              npgpt_error* error) {
    return guard(error, [&] {
        need(train, "train");
        *train = load(need(path, "path"), text, length).release();
    });
}

void npgpt_train_free(npgpt_train* train) {
    delete train;
    release_blocks();
}

void npgpt_train_get_config(const npgpt_train* train, npgpt_train_config* config) {
    if (train && config) *config = train->config;
}

npgpt_status npgpt_train_step(npgpt_train* train, npgpt_train_progress* progress, npgpt_error* error) {
    return guard(error, [&] {
        const npgpt_train_progress now = need(train, "train")->next();
        if (progress) *progress = now;
        if (!std::isfinite(now.grad_norm))
            fail(NPGPT_NOT_FINITE, "train: the loss or a gradient of step %d is no number", now.step);
    });
}

npgpt_status npgpt_train_validate(npgpt_train* train, size_t max_tokens, double* loss, npgpt_error* error) {
    return guard(error, [&] {
        need(loss, "loss");
        *loss = need(train, "train")->validate(max_tokens);
    });
}

npgpt_status npgpt_train_save(const npgpt_train* train, const char* path, npgpt_error* error) {
    return guard(error, [&] {
        const State state = need(train, "train")->state();
        NewFile file(need(path, "path"));
        uint64_t hash = HASH_OF_NOTHING;
        for (const auto& [data, size] : train->parts(state)) {
            file.write(data, size);
            hash = hash_of(data, size, hash);
        }
        file.write(&hash, sizeof(hash));
        file.keep();
    });
}

npgpt_status npgpt_train_export(const npgpt_train* train, const char* path, npgpt_error* error) {
    return guard(error, [&] { export_gguf(need(train, "train")->model, train->vocabulary, need(path, "path")); });
}
