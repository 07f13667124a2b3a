/* Every allocation of libnpgpt fails once, and in a second round all from then on: allocations MODEL.gguf.
 *
 * Each call must then say so by its status, change nothing, leak nothing, and do its work when it is made again: the text is
 * that of a run without failures. Prints how many allocations failed; exit 0 if all holds. test_programs.py runs it.
 * glibc's own malloc stands behind the one here. */
#include <errno.h>
#include <npgpt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);
void __libc_free(void *);

static long made, fail_first = -1, fail_last = -1, failed, live; /* allocations, counted from 0 on */

static int fails(void) {
    const long number = __atomic_fetch_add(&made, 1, __ATOMIC_SEQ_CST);
    if (number < fail_first || number > fail_last) return 0;
    failed++;
    errno = ENOMEM;
    return 1;
}
static void *counted(void *block) {
    if (block) __atomic_fetch_add(&live, 1, __ATOMIC_SEQ_CST);
    return block;
}
void *malloc(size_t size) { return fails() ? NULL : counted(__libc_malloc(size)); }
void *calloc(size_t count, size_t size) { return fails() ? NULL : counted(__libc_calloc(count, size)); }
void *realloc(void *block, size_t size) {
    if (fails()) return NULL;
    return block ? __libc_realloc(block, size) : counted(__libc_realloc(block, size));
}
void *aligned_alloc(size_t boundary, size_t size) { return fails() ? NULL : counted(__libc_memalign(boundary, size)); }
int posix_memalign(void **block, size_t boundary, size_t size) {
    if (fails()) return ENOMEM;
    return (*block = counted(__libc_memalign(boundary, size))) ? 0 : ENOMEM;
}
void free(void *block) {
    if (block) __atomic_fetch_sub(&live, 1, __ATOMIC_SEQ_CST);
    __libc_free(block);
}
void *mmap(void *at, size_t size, int protection, int flags, int file, off_t offset) {
    return fails() ? MAP_FAILED : counted((void *)syscall(SYS_mmap, at, size, protection, flags, file, offset));
}
int munmap(void *at, size_t size) {
    __atomic_fetch_sub(&live, 1, __ATOMIC_SEQ_CST);
    return (int)syscall(SYS_munmap, at, size);
}

static npgpt_error error;

#define CHECK(what)                                                                                              \
    do {                                                                                                         \
        if (!(what)) {                                                                                           \
            fprintf(stderr, "%s:%d: %s (%s), allocation %ld of %ld\n", __FILE__, __LINE__, #what, error.message, \
                    fail_first, made);                                                                           \
            _exit(1);                                                                                            \
        }                                                                                                        \
    } while (0)

/* The call, and where memory failed it the same again with memory */
#define TRY(call)                                                                                              \
    do {                                                                                                       \
        const long before = failed;                                                                            \
        npgpt_status status = (call);                                                                          \
        if (status) {                                                                                          \
            CHECK(failed > before && error.message[0]);                                                        \
            CHECK(status == NPGPT_NO_MEMORY || (status == NPGPT_BAD_FILE && strstr(error.message, "mapped"))); \
            fail_first = fail_last = -1;                                                                       \
            status = (call);                                                                                   \
        }                                                                                                      \
        CHECK(status == NPGPT_OK);                                                                             \
    } while (0)

struct text {
    char bytes[4096];
    size_t length;
};
static int append(void *user, const char *piece, size_t length) {
    struct text *text = user;
    CHECK(text->length + length < sizeof(text->bytes));
    memcpy(text->bytes + text->length, piece, length);
    text->length += length;
    return 0;
}

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

int main(int count, char **arguments) {
    static struct text whole, text;
    long total = 0, leaving;
    if (count != 2) return 2;
    CHECK(!npgpt_set_threads(2, &error));
    for (int i = 0; i < 3; i++) work(arguments[1], &whole); /* what is made once for a process is there then */
    leaving = live;
    for (int from_then_on = 0; from_then_on < 2; from_then_on++)
        for (long n = 0;; n++) {
            const long before = failed;
            made = 0, fail_first = n, fail_last = from_then_on ? 1L << 40 : n;
            work(arguments[1], &text);
            fail_first = fail_last = -1;
            CHECK(text.length == whole.length && !memcmp(text.bytes, whole.bytes, whole.length));
            CHECK(live == leaving);
            if (failed == before) break; /* there are not so many */
            total++;
        }
    printf("%ld allocations failed, all holds\n", total);
    return 0;
}
