/* Allocations that fail: glibc's own malloc stands behind the one here. Each call of libnpgpt must then say so by its status,
 * change nothing, leak nothing, and do its work when it is made again. */
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

/* Prints how many allocations of work(path, text) failed, one by one and then all from each on; 0 if all holds. */
static int all_fail(void (*work)(const char *path, struct text *text), const char *path) {
    static struct text whole, text;
    long total = 0, leaving;
    CHECK(!npgpt_set_threads(2, &error));
    for (int i = 0; i < 3; i++) work(path, &whole); /* what is made once for a process is there then */
    leaving = live;
    for (int from_then_on = 0; from_then_on < 2; from_then_on++)
        for (long n = 0;; n++) {
            const long before = failed;
            made = 0, fail_first = n, fail_last = from_then_on ? 1L << 40 : n;
            work(path, &text);
            fail_first = fail_last = -1;
            CHECK(text.length == whole.length && !memcmp(text.bytes, whole.bytes, whole.length));
            CHECK(live == leaving);
            if (failed == before) break; /* there are not so many */
            total++;
        }
    printf("%ld allocations failed, all holds\n", total);
    return 0;
}
