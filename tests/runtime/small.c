/* small MODEL.gguf: "A allocations behind npgpt_session_new, S bytes of stack". test_programs.py links it so that what
 * allocates is counted. The caller's stack is painted, and looked at afterwards; other threads get THREAD_STACK bytes, and
 * would end the program if they needed more. */
#define _GNU_SOURCE
#include <npgpt.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { STACK = 512 * 1024, THREAD_STACK = 64 * 1024, PAINT = 0xA5 };

static int counting, allocations;

#define COUNTED(type, name, parameters, arguments) \
    type __real_##name parameters;                 \
    type __wrap_##name parameters {                \
        allocations += counting;                   \
        return __real_##name arguments;            \
    }
COUNTED(void *, malloc, (size_t size), (size))
COUNTED(void *, calloc, (size_t count, size_t size), (count, size))
COUNTED(void *, realloc, (void *block, size_t size), (block, size))
COUNTED(int, posix_memalign, (void **block, size_t boundary, size_t size), (block, boundary, size))
COUNTED(void *, aligned_alloc, (size_t boundary, size_t size), (boundary, size))
COUNTED(void *, mmap, (void *at, size_t size, int may, int flags, int file, off_t from), (at, size, may, flags, file, from))

static npgpt_error error;

static void need(npgpt_status status) {
    if (!status) return;
    fprintf(stderr, "small: %s\n", error.message);
    exit(1);
}

static int swallow(void *user, const char *text, size_t length) {
    (void)user, (void)text, (void)length;
    return 0;
}

/* Prompts of all lengths, single ids past the end of the context, draws of every kind */
static void use(npgpt_session *session, int context) {
    static int32_t ids[1000];
    static float logits[1000];
    npgpt_sampling sampling;
    int32_t id = 65;
    int turn, i;
    for (i = 0; i < 1000; i++) ids[i] = (i * 7 + i / 31) % 256;
    for (i = 1; i < context; i += i < 9 ? 1 : 13) {
        npgpt_session_reset(session);
        need(npgpt_feed(session, ids, (size_t)i, NULL, &error));
    }
    for (turn = 0; turn < 4; turn++) {
        npgpt_default_sampling(&sampling);
        sampling.temperature = turn ? 0.5 + turn : 0;
        if (turn > 1) sampling.top_k = 20, sampling.top_p = 0.9, sampling.min_p = 0.01, sampling.banned = 3;
        if (turn > 2) sampling.repetition_penalty = 1.1, sampling.presence_penalty = sampling.frequency_penalty = 0.1;
        npgpt_session_reset(session);
        for (i = 0; i < 2 * context; i++) {
            need(npgpt_feed(session, &id, 1, i < context / 2 ? logits : NULL, &error));
            need(npgpt_sample(session, &sampling, &id, &error));
        }
    }
    need(npgpt_session_rewind(session, 3, &error));
    need(npgpt_feed(session, ids, 5, NULL, &error));
}

static void *work(void *path) {
    npgpt_model *model;
    npgpt_session *session;
    npgpt_config config;
    need(npgpt_open(path, &model, &error));
    npgpt_get_config(model, &config);
    if (config.vocab_size > 1000 || config.block_size > 999) exit(2);
    need(npgpt_session_new(model, 0, &session, &error));
    counting = 1;
    use(session, config.block_size);
    counting = 0;
    npgpt_session_reset(session);
    need(npgpt_generate(session, "O sol", 5, NULL, swallow, NULL, NULL, &error));
    npgpt_session_free(session);
    npgpt_free(model);
    return NULL;
}

int main(int argc, char **argv) {
    unsigned char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_attr_t how;
    pthread_t thread;
    size_t unused = 0;
    if (argc != 2 || stack == MAP_FAILED) return 2;
    pthread_attr_init(&how);
    pthread_attr_setstacksize(&how, THREAD_STACK);
    if (pthread_setattr_default_np(&how)) return 2;
    npgpt_set_threads(3, NULL);
    memset(stack, PAINT, STACK);
    pthread_attr_setstack(&how, stack, STACK);
    if (pthread_create(&thread, &how, work, argv[1]) || pthread_join(thread, NULL)) return 2;
    while (unused < STACK && stack[unused] == PAINT) unused++;
    printf("%d allocations behind npgpt_session_new, %zu bytes of stack\n", allocations, STACK - unused);
    return 0;
}
