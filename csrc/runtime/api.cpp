// The C ABI of npgpt.h: arguments checked, errors turned into codes.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#ifdef __GLIBCXX__
#include <cxxabi.h>
#endif

#include "../threads/pool.h"
#include "error.h"
#include "session.h"
#include "stream.h"

using namespace npgpt;

#if defined(__GLIBCXX__) && defined(__ELF__) && defined(__cpp_exceptions)
// What libstdc++.a ends a program with that lets an exception escape, but for the type's name as C++ writes it: that is 50 kB of
// demangler in every small program around libnpgpt. Hidden: where libstdc++ is a shared library, it keeps its own.
extern "C" __attribute__((visibility("hidden"))) void npgpt_terminate() __asm__(
    "_ZN9__gnu_cxx27__verbose_terminate_handlerEv");
void npgpt_terminate() {
    const std::type_info* type = abi::__cxa_current_exception_type();
    std::fprintf(stderr, "terminate called %s%s\n", type ? "after throwing " : "without an active exception",
                 type ? type->name() : "");
    try {
        if (type) throw;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "  what():  %s\n", error.what());
    } catch (...) {
        std::fprintf(stderr, "  which is no std::exception\n");
    }
    std::abort();
}
#endif

struct npgpt_model {
    std::shared_ptr<Model> model;
};
struct npgpt_session : Session {
    using Session::Session;
};

namespace {

void need(const char* function, const char* argument, const void* pointer) {
    if (!pointer) fail(NPGPT_BAD_ARGUMENT, "%s: %s must not be NULL", function, argument);
}

npgpt_finish generate(Session& session, const char* prompt, size_t length, const npgpt_generation& how,
                      npgpt_on_text on_text, void* user) {
    const Vocabulary* vocabulary = session.model->vocabulary.get();
    if (!vocabulary) fail(NPGPT_UNSUPPORTED, "generate: the model has no tokenizer; feed it ids");
    if (how.max_new_tokens < 0)
        fail(NPGPT_BAD_ARGUMENT, "generate: max_new_tokens must be at least 0, got %d", how.max_new_tokens);
    std::vector<std::string> stops;
    for (size_t i = 0; i < how.stop_count; i++) {
        if (!how.stop || !how.stop[i] || !*how.stop[i])
            fail(NPGPT_BAD_ARGUMENT, "generate: stop must be strings that are not empty");
        stops.emplace_back(how.stop[i]);
    }
    npgpt_sampling sampling = how.sampling;
    const int32_t end = vocabulary->end_of_text();
    if (how.ignore_eos) sampling.banned = end;
    check_sampling(sampling, vocabulary->size());
    const bool begins = !session.has_logits;
    std::vector<int32_t> ids = vocabulary->encode(prompt, length, begins);
    if (begins && vocabulary->begin_of_text() >= 0)
        ids.insert(ids.begin(), vocabulary->begin_of_text());
    else if (begins && ids.empty())
        ids.push_back(end);  // where a document begins
    if (!ids.empty()) session.feed(ids.data(), ids.size(), nullptr);

    Stream stream(std::move(stops));
    npgpt_finish finish = NPGPT_FINISH_LENGTH;
    const auto tell = [&](const std::string& text) {
        if (text.empty() || !on_text || !on_text(user, text.data(), text.size())) return true;
        finish = NPGPT_FINISH_CANCELLED;
        return false;
    };
    for (int32_t i = 0; i < how.max_new_tokens; i++) {
        const int32_t id = session.sample(sampling);
        if (!how.ignore_eos && vocabulary->ends(id)) {
            finish = NPGPT_FINISH_END;
            break;
        }
        const bool goes_on = tell(vocabulary->is_special(id) ? std::string() : stream.push(vocabulary->bytes(id)));
        const bool full = session.is_full();
        if (!full) session.feed(&id, 1, nullptr);  // the text stays whole, whatever ends it
        if (!goes_on) return finish;
        if (stream.stopped()) return NPGPT_FINISH_STOP;
        if (full) {
            finish = NPGPT_FINISH_FULL;
            break;
        }
    }
    tell(stream.close());
    return stream.stopped() && finish != NPGPT_FINISH_CANCELLED ? NPGPT_FINISH_STOP : finish;
}

}  // namespace

extern "C" {

uint32_t npgpt_abi_version(void) { return NPGPT_ABI_VERSION; }

int npgpt_threads(void) { return num_threads(); }

npgpt_status npgpt_set_threads(int threads, npgpt_error* error) {
    return guard(error, [&] {
        if (threads < 1 || threads > 1024)
            fail(NPGPT_BAD_ARGUMENT, "set_threads: threads must be in 1..1024, got %d", threads);
        set_num_threads(threads);
    });
}

npgpt_status npgpt_open(const char* path, npgpt_model** model, npgpt_error* error) {
    return guard(error, [&] {
        need("open", "path", path), need("open", "model", model);
        *model = new npgpt_model{Model::open(path)};
    });
}

npgpt_status npgpt_open_memory(const void* data, size_t size, npgpt_model** model, npgpt_error* error) {
    return guard(error, [&] {
        need("open_memory", "data", data), need("open_memory", "model", model);
        *model = new npgpt_model{Model::from_gguf(static_cast<const uint8_t*>(data), size)};
    });
}

npgpt_status npgpt_from_tensors(const npgpt_config* config, const npgpt_tensor* tensors, size_t count,
                                npgpt_model** model, npgpt_error* error) {
    return guard(error, [&] {
        need("from_tensors", "config", config), need("from_tensors", "tensors", tensors);
        need("from_tensors", "model", model);
        *model = new npgpt_model{Model::from_tensors(*config, tensors, count)};
    });
}

npgpt_status npgpt_pack(npgpt_model* model, npgpt_error* error) {
    return guard(error, [&] {
        need("pack", "model", model);
        model->model->pack();
    });
}

void npgpt_touch(npgpt_model* model) { model->model->version++; }
void npgpt_free(npgpt_model* model) { delete model; }
void npgpt_get_config(const npgpt_model* model, npgpt_config* config) { *config = model->model->config; }

npgpt_status npgpt_use_kernels(npgpt_model* model, const char* name, npgpt_error* error) {
    return guard(error, [&] {
        need("use_kernels", "model", model), need("use_kernels", "name", name);
        const Kernels* kernels = find_kernels(name);
        if (!kernels) fail(NPGPT_BAD_ARGUMENT, "use_kernels: %.64s is none of this CPU's", name);
        model->model->kernels = kernels;
    });
}

const char* npgpt_kernels(const npgpt_model* model) { return model->model->kernels.load()->name; }

int npgpt_has_tokenizer(const npgpt_model* model) { return model->model->vocabulary != nullptr; }

int32_t npgpt_end_of_text(const npgpt_model* model) {
    return model->model->vocabulary ? model->model->vocabulary->end_of_text() : -1;
}

int32_t npgpt_begin_of_text(const npgpt_model* model) {
    return model->model->vocabulary ? model->model->vocabulary->begin_of_text() : -1;
}

npgpt_status npgpt_encode(const npgpt_model* model, const char* text, size_t length, int32_t* ids, size_t room,
                          size_t* count, npgpt_error* error) {
    return guard(error, [&] {
        need("encode", "model", model), need("encode", "count", count);
        if (length) need("encode", "text", text);
        if (room) need("encode", "ids", ids);
        if (!model->model->vocabulary) fail(NPGPT_UNSUPPORTED, "encode: the model has no tokenizer");
        const std::vector<int32_t> found = model->model->vocabulary->encode(text, length);
        std::copy_n(found.begin(), std::min(room, found.size()), ids);
        *count = found.size();
    });
}

const char* npgpt_token_bytes(const npgpt_model* model, int32_t id, size_t* length) {
    const Vocabulary* vocabulary = model->model->vocabulary.get();
    if (!vocabulary || id < 0 || size_t(id) >= vocabulary->size()) return nullptr;
    if (length) *length = vocabulary->bytes(id).size();
    return vocabulary->bytes(id).data();
}

npgpt_status npgpt_session_new(npgpt_model* model, int32_t context, npgpt_session** session, npgpt_error* error) {
    return guard(error, [&] {
        need("session_new", "model", model), need("session_new", "session", session);
        const int32_t most = model->model->config.block_size;
        if (context < 0 || context > most)
            fail(NPGPT_BAD_ARGUMENT, "session_new: context must be in 0..%d, got %d", most, context);
        *session = new npgpt_session(model->model, context);
    });
}

void npgpt_session_free(npgpt_session* session) { delete session; }
void npgpt_session_reset(npgpt_session* session) { session->reset(); }
void npgpt_session_forget(npgpt_session* session) { session->forget(); }

npgpt_status npgpt_session_rewind(npgpt_session* session, size_t count, npgpt_error* error) {
    return guard(error, [&] {
        need("rewind", "session", session);
        session->rewind(count);
    });
}

npgpt_status npgpt_session_allow(npgpt_session* session, const uint32_t* ids, npgpt_error* error) {
    return guard(error, [&] {
        need("allow", "session", session);
        const size_t V = size_t(session->model->config.vocab_size);
        std::vector<uint32_t> allowed;
        if (ids) {
            allowed.assign(ids, ids + (V + 31) / 32);
            if (V % 32) allowed.back() &= (1u << V % 32) - 1;
            if (std::count(allowed.begin(), allowed.end(), 0u) == std::ptrdiff_t(allowed.size()))
                fail(NPGPT_BAD_ARGUMENT, "allow: ids must hold at least one");
        }
        session->wishes.allowed.swap(allowed);
    });
}

npgpt_status npgpt_session_bias(npgpt_session* session, const float* bias, npgpt_error* error) {
    return guard(error, [&] {
        need("bias", "session", session);
        std::vector<float> added;
        if (bias) added.assign(bias, bias + session->model->config.vocab_size);
        for (size_t i = 0; i < added.size(); i++)
            if (!std::isfinite(added[i])) fail(NPGPT_BAD_ARGUMENT, "bias: of id %zu is not finite", i);
        session->wishes.bias.swap(added);
    });
}

npgpt_status npgpt_session_save(const npgpt_session* session, size_t first, size_t count, float* data,
                                npgpt_error* error) {
    return guard(error, [&] {
        need("save", "session", session);
        if (count) need("save", "data", data);
        session->save(first, count, data);
    });
}

npgpt_status npgpt_session_load(npgpt_session* session, const int32_t* ids, size_t count, const float* data,
                                const float* logits, npgpt_error* error) {
    return guard(error, [&] {
        need("load", "session", session);
        if (count) need("load", "ids", ids), need("load", "data", data);
        session->load(ids, count, data, logits);
    });
}

int32_t npgpt_session_length(const npgpt_session* session) { return int32_t(session->length); }
void npgpt_session_slide(npgpt_session* session, int slide) { session->slide = slide != 0; }
void npgpt_session_speculate(npgpt_session* session, int speculate) { session->speculate = speculate != 0; }

npgpt_status npgpt_feed(npgpt_session* session, const int32_t* ids, size_t count, float* logits, npgpt_error* error) {
    return guard(error, [&] {
        need("feed", "session", session), need("feed", "ids", ids);
        session->feed(ids, count, logits);
    });
}

npgpt_status npgpt_feed_hidden(npgpt_session* session, const int32_t* ids, size_t count, float* hidden,
                               npgpt_error* error) {
    return guard(error, [&] {
        need("feed_hidden", "session", session), need("feed_hidden", "ids", ids);
        need("feed_hidden", "hidden", hidden);
        session->feed(ids, count, nullptr, hidden);
    });
}

npgpt_status npgpt_feed_many(npgpt_session* const* sessions, const int32_t* ids, size_t count, npgpt_error* error) {
    return guard(error, [&] {
        need("feed_many", "sessions", sessions), need("feed_many", "ids", ids);
        std::vector<Session*> all;
        for (size_t i = 0; i < count; i++) {
            need("feed_many", "a session", sessions[i]);
            all.push_back(sessions[i]);
        }
        Session::feed_many(all.data(), ids, count);
    });
}

const float* npgpt_logits(const npgpt_session* session) {
    return session->has_logits ? session->logits.data() : nullptr;
}

void npgpt_default_sampling(npgpt_sampling* sampling) { *sampling = {0.8, 1, 0, 1, 0, 0, -1, 0, 0}; }

npgpt_status npgpt_sample(npgpt_session* session, const npgpt_sampling* sampling, int32_t* id, npgpt_error* error) {
    return guard(error, [&] {
        need("sample", "session", session), need("sample", "sampling", sampling), need("sample", "id", id);
        *id = session->sample(*sampling);
    });
}

void npgpt_default_generation(npgpt_generation* generation) {
    *generation = {};
    npgpt_default_sampling(&generation->sampling);
    generation->max_new_tokens = 200;
}

npgpt_status npgpt_generate(npgpt_session* session, const char* prompt, size_t length,
                            const npgpt_generation* generation, npgpt_on_text on_text, void* user, npgpt_finish* finish,
                            npgpt_error* error) {
    return guard(error, [&] {
        need("generate", "session", session);
        if (length) need("generate", "prompt", prompt);
        npgpt_generation plain;
        npgpt_default_generation(&plain);
        const npgpt_finish ended = generate(*session, prompt, length, generation ? *generation : plain, on_text, user);
        if (finish) *finish = ended;
    });
}

}  // extern "C"
