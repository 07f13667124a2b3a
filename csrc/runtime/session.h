// A text that grows: its tokens, its cache of keys and values, what the model says comes next.
#pragma once
#include <memory>
#include <vector>

#include "forward.h"
#include "sampler.h"

namespace npgpt {

class Session {
  public:
    Session(std::shared_ptr<Model> model, Index context);
    ~Session();

    void reset();
    void forget();
    void rewind(size_t count);
    void save(size_t first, size_t count, float* data) const;
    void load(const int32_t* ids, size_t count, const float* data, const float* behind);
    void feed(const int32_t* ids, size_t count, float* logits, float* hidden = nullptr);
    static void feed_many(Session* const* sessions, const int32_t* ids, size_t count);
    int32_t sample(const npgpt_sampling& how);
    bool is_full() const { return !slide && length == cache.context; }

    const std::shared_ptr<Model> model;
    Wishes wishes;
    bool slide = true, speculate = false;
    Index length = 0;           // tokens in the cache
    bool has_logits = false;
    std::vector<float> logits;  // (V)

  private:
    void check(const int32_t* ids, size_t count) const;
    void append(const int32_t* ids, size_t count);
    template <class Copy>
    void each_head(size_t first, size_t count, Copy&& copy) const;
    void read(const int32_t* ids, size_t count, float* every, float* hidden);
    bool follow(int32_t id);
    std::vector<int32_t> with_guesses(int32_t id) const;

    Cache cache{};
    std::vector<int32_t> text;  // the last `context` tokens
    std::vector<int32_t> guesses;  // that the cache holds behind the text; (1 + GUESSES, V) what comes after each
    Buffer guess_logits;
    size_t guessed = 0;            // of them that came
    std::vector<bool> seen;
    std::vector<uint32_t> drawn;  // (V) how often each id was, kept from the first penalty on it
    uint64_t version, draws = 0;
    Workspace work;
    Buffer batch_logits;
    Sampler sampler;
};

}  // namespace npgpt
