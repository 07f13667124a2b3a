/* Every allocation of libnpgpt fails once, and in a second round all from then on: allocations MODEL.gguf.
 *
 * Each call must then say so by its status, change nothing, leak nothing, and do its work when it is made again: the text is
 * that of a run without failures. Prints how many allocations failed; exit 0 if all holds. test_programs.py runs it.
 */
#include "failing.h"

/* All that allocates, in the order of a program that uses it */
static void work(const char *path, struct text *text) {
    static float logits[8 * 512], cache[1 << 16], bias[512];
    static uint32_t allowed[16];
    static const int32_t begin[] = {3, 5, 1, 4};
    const char *const stop[] = {"\x01\x02never", "nor this"};
    npgpt_model *model = NULL;
    npgpt_session *a = NULL, *b = NULL;
    npgpt_generation how;
    npgpt_config config;
    int32_t ids[64];
    size_t count;
    text->length = 0;

    TRY(npgpt_open(path, &model, &error));
    npgpt_get_config(model, &config);
    CHECK(config.vocab_size <= 512);
    TRY(npgpt_use_kernels(model, "auto", &error));
    TRY(npgpt_session_new(model, 0, &a, &error));
    TRY(npgpt_session_new(model, 24, &b, &error));
    TRY(npgpt_encode(model, "O sol e a lua", 13, ids, 64, &count, &error));
    TRY(npgpt_feed(a, begin, 4, logits, &error));
    append(text, (const char *)logits, sizeof(float));
    TRY(npgpt_feed(b, ids, count < 20 ? count : 20, NULL, &error));
    TRY(npgpt_session_save(a, 0, 4, cache, &error));
    for (int i = 0; i < 6; i++) {
        npgpt_session *const both[] = {a, b};
        npgpt_default_generation(&how);
        how.sampling.seed = 3, how.sampling.repetition_penalty = 1.1, how.sampling.top_p = 0.9;
        how.sampling.frequency_penalty = 0.1;
        int32_t next[2];
        TRY(npgpt_sample(a, &how.sampling, &next[0], &error));
        TRY(npgpt_sample(b, &how.sampling, &next[1], &error));
        append(text, (const char *)next, sizeof(next));
        TRY(npgpt_feed_many(both, next, 2, &error));
    }
    npgpt_session_reset(a);
    TRY(npgpt_session_load(a, begin, 4, cache, NULL, &error));
    TRY(npgpt_session_rewind(a, 3, &error));
    memset(allowed, 255, sizeof(allowed));
    TRY(npgpt_session_allow(a, allowed, &error));
    bias[2] = 1;
    TRY(npgpt_session_bias(a, bias, &error));
    npgpt_session_speculate(a, 1);
    npgpt_default_generation(&how);
    how.max_new_tokens = (int)config.block_size, how.ignore_eos = 1, how.stop = stop, how.stop_count = 2;
    TRY(npgpt_feed(a, begin, 4, NULL, &error));
    /* One that fails may have written; then the text is what the whole of it wrote. */
    const size_t written = text->length;
    const long before = failed;
    npgpt_status status = npgpt_generate(a, "e o mar", 7, &how, append, text, NULL, &error);
    if (status) {
        CHECK(status == NPGPT_NO_MEMORY && failed > before);
        fail_first = fail_last = -1;
        text->length = written;
        npgpt_session_reset(a);
        CHECK(!npgpt_session_load(a, begin, 4, cache, NULL, &error) && !npgpt_session_rewind(a, 3, &error));
        CHECK(!npgpt_feed(a, begin, 4, NULL, &error));
        CHECK(!npgpt_generate(a, "e o mar", 7, &how, append, text, NULL, &error));
    }
    npgpt_session_free(a);
    npgpt_free(model); /* the other session keeps what it needs */
    TRY(npgpt_feed(b, begin, 1, NULL, &error));
    npgpt_session_free(b);
}

int main(int count, char **arguments) { return count == 2 ? all_fail(work, arguments[1]) : 2; }
