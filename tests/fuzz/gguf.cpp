// libFuzzer's target for libnpgpt's reader of GGUF files; tests/slow/gguf.py builds and runs it.
//
// A file is refused with a code and a line, or a text is written with it. Either way nothing beyond its bytes is read
// (ASan), nothing takes long, and what is allocated while it is opened stays within a few times its size.
#include <npgpt.h>
#include <sanitizer/allocator_interface.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

namespace {

size_t held = 0, most = 0;

void on_malloc(const volatile void*, size_t size) {
    held += size;
    if (held > most) most = held;
}
void on_free(const volatile void* block) {
    const size_t size = block ? __sanitizer_get_allocated_size(const_cast<const void*>(block)) : 0;
    held -= size < held ? size : held;
}

void need(bool holds, const char* what, const npgpt_error& error) {
    if (holds) return;
    std::fprintf(stderr, "%s (%s)\n", what, error.message);
    std::abort();
}

bool is_line(const char* text) {  // and what of it the file spelt is shown without its control characters
    if (!*text) return false;
    for (const char* c = text; *c; c++)
        if ((unsigned char)*c < 32 || *c == 127) return false;
    return true;
}

void write_with(npgpt_model* model, npgpt_error& error) {
    npgpt_config config;
    npgpt_get_config(model, &config);
    npgpt_session* session = nullptr;
    const int32_t context = config.block_size < 12 ? config.block_size : 12;
    need(npgpt_session_new(model, context, &session, &error) == NPGPT_OK, "no session of a model that was opened", error);
    int32_t ids[20];
    for (int i = 0; i < 20; i++) ids[i] = i * 7919 % config.vocab_size;
    need(npgpt_feed(session, ids, 20, nullptr, &error) == NPGPT_OK, "ids that are right were refused", error);
    if (npgpt_has_tokenizer(model)) {
        npgpt_generation how;
        npgpt_default_generation(&how);
        how.max_new_tokens = 8, how.sampling.top_k = 5;
        const npgpt_status status = npgpt_generate(session, "O sol, \xC3\xA9", 9, &how, nullptr, nullptr, nullptr, &error);
        need(status == NPGPT_OK || status == NPGPT_NOT_FINITE, "no text of a model that was opened", error);
    }
    npgpt_session_free(session);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const int hooked = __sanitizer_install_malloc_and_free_hooks(on_malloc, on_free);
    npgpt_error error = {""};
    static const npgpt_status alone = npgpt_set_threads(1, &error);
    need(hooked && alone == NPGPT_OK, "cannot begin", error);
    void* file;
    if (posix_memalign(&file, 32, size ? size : 1)) return 0;
    std::memcpy(file, data, size);
    const std::clock_t start = std::clock();  // of this process alone, which may have to wait
    npgpt_model* model = nullptr;
    held = most = 0;
    const npgpt_status status = npgpt_open_memory(file, size, &model, &error);
    need(most <= 32768 + 24 * size, "more memory than the file's size explains", error);
    need(status == NPGPT_OK || is_line(error.message), "a refusal that is no line", error);
    need(status != NPGPT_INTERNAL && status != NPGPT_NO_MEMORY, "an error that should not be", error);
    if (status == NPGPT_OK) write_with(model, error);
    npgpt_free(model);
    std::free(file);
    need(std::clock() - start < 5 * CLOCKS_PER_SEC, "it took long", error);
    return 0;
}
