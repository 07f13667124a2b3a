/* Every function of npgpt.h, used as it should be and as it should not. abi MODEL.gguf: exit 0 if all holds.
 * test_programs.py runs it; tests/slow/sanitize.py runs it under the sanitizers. */
#pragma GCC diagnostic ignored "-Wmissing-field-initializers" /* fields left out are 0: GPT-2's */
#include <npgpt.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(what)                                                            \
    do {                                                                       \
        if (!(what)) {                                                         \
            fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #what, error.message); \
            exit(1);                                                           \
        }                                                                      \
    } while (0)

static npgpt_error error;

struct text {
    char bytes[65536];
    size_t length, pieces, most;
};

static int append(void *user, const char *piece, size_t length) {
    struct text *text = user;
    memcpy(text->bytes + text->length, piece, length);
    text->length += length;
    return ++text->pieces == text->most;
}

static npgpt_model *model;
static npgpt_config config;

static void check_wishes(npgpt_session *session) {
    uint32_t some[9] = {1u << 3}; /* (257 + 31) / 32 words */
    static float bias[257];
    npgpt_sampling sampling;
    int32_t id;
    npgpt_default_sampling(&sampling);
    some[8] = 1; /* ids 3 and 256 */
    CHECK(!npgpt_session_allow(session, some, &error));
    for (int i = 0; i < 100; i++) {
        sampling.temperature = i % 3 * 10, sampling.top_k = i % 5, sampling.top_p = i % 4 / 3.0;
        sampling.banned = i % 2 ? 256 : -1;
        CHECK(!npgpt_sample(session, &sampling, &id, &error) && (id == 3 || (id == 256 && i % 2 == 0)));
    }
    some[0] = 0, sampling.banned = 256;
    CHECK(!npgpt_session_allow(session, some, &error));
    CHECK(npgpt_sample(session, &sampling, &id, &error) == NPGPT_BAD_ARGUMENT && strstr(error.message, "allowed"));
    some[8] = 2; /* an id that is none */
    CHECK(npgpt_session_allow(session, some, &error) == NPGPT_BAD_ARGUMENT);
    CHECK(npgpt_session_allow(NULL, some, &error) == NPGPT_BAD_ARGUMENT && !npgpt_session_allow(session, NULL, &error));
    bias[9] = 1e6f;
    CHECK(!npgpt_session_bias(session, bias, &error));
    for (int i = 0; i < 10; i++) {
        sampling.temperature = i % 2;
        CHECK(!npgpt_sample(session, &sampling, &id, &error) && id == 9);
    }
    bias[256] = (float)(1 / sampling.presence_penalty); /* infinite */
    CHECK(npgpt_session_bias(session, bias, &error) == NPGPT_BAD_ARGUMENT && strstr(error.message, "id 256"));
    CHECK(npgpt_session_bias(NULL, bias, &error) == NPGPT_BAD_ARGUMENT && !npgpt_session_bias(session, NULL, &error));
}

static void check_opening(const char *path) {
    npgpt_model *other = NULL;
    FILE *file;
    char *data;
    long size;
    CHECK(npgpt_abi_version() == NPGPT_ABI_VERSION);
    CHECK(npgpt_open("/nowhere", &other, &error) == NPGPT_BAD_FILE && strstr(error.message, "/nowhere"));
    CHECK(npgpt_open("/nowhere", &other, NULL) == NPGPT_BAD_FILE && !other);
    CHECK(npgpt_open(NULL, &other, &error) == NPGPT_BAD_ARGUMENT);
    CHECK(npgpt_open(path, NULL, &error) == NPGPT_BAD_ARGUMENT);
    CHECK(npgpt_open(path, &model, &error) == NPGPT_OK);
    npgpt_get_config(model, &config);
    CHECK(config.n_layer > 0 && config.vocab_size == 257);

    CHECK((file = fopen(path, "rb")) && !fseek(file, 0, SEEK_END) && (size = ftell(file)) > 0);
    rewind(file);
    CHECK((data = aligned_alloc(32, ((size_t)size + 63) / 32 * 32)) && fread(data, 1, (size_t)size, file) == (size_t)size);
    fclose(file);
    CHECK(npgpt_open_memory(data, (size_t)size, &other, &error) == NPGPT_OK);
    npgpt_free(other);
    other = NULL;
    CHECK(npgpt_open_memory(data + 1, (size_t)size - 1, &other, &error) == NPGPT_BAD_ARGUMENT);
    CHECK(npgpt_open_memory(data, 100, &other, &error) == NPGPT_BAD_FORMAT && !strchr(error.message, '\n'));
    for (size_t cut = 0; cut < (size_t)size; cut += cut < 4096 ? 7 : 4099) { /* nothing behind the end is read */
        char *part = aligned_alloc(32, (cut + 32) / 32 * 32);
        memcpy(part, data, cut);
        CHECK(npgpt_open_memory(part, cut, &other, &error) != NPGPT_OK);
        free(part);
    }
    free(data);
    npgpt_free(NULL);
}

static void check_kernels(void) {
    CHECK(npgpt_use_kernels(model, "abacus", &error) == NPGPT_BAD_ARGUMENT);
    CHECK(!npgpt_use_kernels(model, "baseline", &error) && !strcmp(npgpt_kernels(model), "baseline"));
    CHECK(!npgpt_use_kernels(model, "auto", &error));
    CHECK(npgpt_set_threads(0, &error) == NPGPT_BAD_ARGUMENT);
    CHECK(!npgpt_set_threads(2, &error) && npgpt_threads() == 2);
}

static void check_text(void) {
    int32_t ids[8] = {0};
    size_t count = 0;
    CHECK(npgpt_has_tokenizer(model) && npgpt_end_of_text(model) == 256 && npgpt_begin_of_text(model) == -1);
    CHECK(!npgpt_encode(model, "a\xC3\xA9", 3, ids, 8, &count, &error) && count == 3 && ids[0] == 'a' && ids[2] == 0xA9);
    CHECK(!npgpt_encode(model, "abc", 3, ids, 1, &count, &error) && count == 3);
    CHECK(!npgpt_encode(model, NULL, 0, NULL, 0, &count, &error) && count == 0);
    CHECK(npgpt_encode(model, NULL, 1, ids, 8, &count, &error) == NPGPT_BAD_ARGUMENT);
    CHECK(*npgpt_token_bytes(model, 'a', &count) == 'a' && count == 1);
    CHECK(!npgpt_token_bytes(model, -1, &count) && !npgpt_token_bytes(model, 257, NULL));
}

static void check_sessions(void) {
    npgpt_session *one, *many[5];
    npgpt_sampling sampling;
    int32_t ids[300], id = 0;
    float *logits = malloc(sizeof(float) * 300 * 257), first[257];
    for (int i = 0; i < 300; i++) ids[i] = i * 7 % 256;
    CHECK(npgpt_session_new(model, config.block_size + 1, &one, &error) == NPGPT_BAD_ARGUMENT);
    CHECK(!npgpt_session_new(model, 16, &one, &error) && !npgpt_logits(one) && !npgpt_session_length(one));
    npgpt_default_sampling(&sampling);
    CHECK(npgpt_sample(one, &sampling, &id, &error) == NPGPT_BAD_ARGUMENT);
    CHECK(npgpt_feed(one, ids, 0, NULL, &error) == NPGPT_BAD_ARGUMENT);
    CHECK(npgpt_feed(one, NULL, 1, NULL, &error) == NPGPT_BAD_ARGUMENT);
    id = 257;
    CHECK(npgpt_feed(one, &id, 1, NULL, &error) == NPGPT_BAD_ARGUMENT);
    CHECK(npgpt_feed(one, ids, 17, logits, &error) == NPGPT_BAD_ARGUMENT);
    CHECK(!npgpt_feed(one, ids, 16, logits, &error) && npgpt_session_length(one) == 16);
    CHECK(!memcmp(npgpt_logits(one), logits + 15 * 257, sizeof(first)));
    npgpt_session_slide(one, 0);
    CHECK(npgpt_feed(one, ids, 1, NULL, &error) == NPGPT_FULL);
    CHECK(npgpt_feed_many(&one, ids, 1, &error) == NPGPT_FULL);
    npgpt_session_slide(one, 1);
    CHECK(!npgpt_feed(one, ids, 1, NULL, &error) && npgpt_session_length(one) == 8);
    npgpt_session_reset(one);
    CHECK(!npgpt_feed(one, ids, 300, NULL, &error) && npgpt_session_length(one) == 16);
    npgpt_touch(model);
    CHECK(!npgpt_feed(one, ids, 1, NULL, &error));
    for (int i = 0; i < 200; i++) {
        sampling.seed = (uint64_t)i, sampling.top_k = i % 7, sampling.top_p = i % 5 / 4.0, sampling.min_p = i % 3 / 20.0;
        sampling.temperature = i % 4, sampling.repetition_penalty = 1 + i % 2, sampling.banned = i % 2 ? 256 : -1;
        CHECK(!npgpt_sample(one, &sampling, &id, &error) && id >= 0 && id < 257 && !(i % 2 && id == 256));
    }
    sampling.temperature = 1, sampling.presence_penalty = 1, sampling.frequency_penalty = 1e300;
    for (int i = 0; i < 100; i++) { /* each id once before any comes twice */
        CHECK(!npgpt_sample(one, &sampling, &id, &error));
        for (int k = 0; k < i; k++) CHECK(ids[k] != id);
        ids[i] = id;
    }
    check_wishes(one);
    for (int i = 0; i < 300; i++) ids[i] = i * 7 % 256;
    npgpt_session_forget(one);
    CHECK(npgpt_session_length(one) == 0 && npgpt_sample(one, &sampling, &id, &error) == NPGPT_BAD_ARGUMENT);
    CHECK(npgpt_feed_hidden(one, ids, 4, NULL, &error) == NPGPT_BAD_ARGUMENT);
    CHECK(!npgpt_feed_hidden(one, ids, 4, logits, &error) && npgpt_session_length(one) == 4);
    CHECK(npgpt_session_rewind(one, 5, &error) == NPGPT_BAD_ARGUMENT && npgpt_session_length(one) == 4);
    CHECK(!npgpt_session_rewind(one, 2, &error) && npgpt_session_length(one) == 2 && !npgpt_logits(one));
    CHECK(npgpt_session_rewind(NULL, 0, &error) == NPGPT_BAD_ARGUMENT && !npgpt_feed(one, ids, 1, NULL, &error));
    sampling.temperature = -1;
    CHECK(npgpt_sample(one, &sampling, &id, &error) == NPGPT_BAD_ARGUMENT && strstr(error.message, "temperature"));

    { /* what a session has read, another one loads */
        npgpt_config shape;
        npgpt_get_config(model, &shape);
        const size_t each = (size_t)(2 * shape.n_layer * shape.n_kv_head * shape.head_size);
        float *data = malloc(12 * each * sizeof(float));
        npgpt_session *two;
        npgpt_session_reset(one);
        CHECK(data && !npgpt_session_new(model, 16, &two, &error) && !npgpt_feed(one, ids, 12, NULL, &error));
        CHECK(npgpt_session_save(one, 5, 8, data, &error) == NPGPT_BAD_ARGUMENT && strstr(error.message, "save"));
        CHECK(npgpt_session_save(one, (size_t)-1, 2, data, &error) == NPGPT_BAD_ARGUMENT);
        CHECK(npgpt_session_save(one, 0, 1, NULL, &error) == NPGPT_BAD_ARGUMENT);
        CHECK(!npgpt_session_save(one, 0, 5, data, &error) && !npgpt_session_save(one, 5, 7, data + 5 * each, &error));
        CHECK(!npgpt_session_load(two, ids, 5, data, NULL, &error) && !npgpt_logits(two));
        CHECK(!npgpt_session_load(two, ids + 5, 7, data + 5 * each, npgpt_logits(one), &error));
        CHECK(npgpt_session_length(two) == 12 && !memcmp(npgpt_logits(one), npgpt_logits(two), sizeof(first)));
        CHECK(!npgpt_feed(one, ids + 12, 1, NULL, &error) && !npgpt_feed(two, ids + 12, 1, NULL, &error));
        CHECK(!memcmp(npgpt_logits(one), npgpt_logits(two), sizeof(first)));
        CHECK(npgpt_session_load(two, ids, 12, data, NULL, &error) == NPGPT_FULL && npgpt_session_length(two) == 13);
        id = 257;
        CHECK(npgpt_session_load(two, &id, 1, data, NULL, &error) == NPGPT_BAD_ARGUMENT);
        CHECK(npgpt_session_load(NULL, ids, 1, data, NULL, &error) == NPGPT_BAD_ARGUMENT);
        npgpt_touch(model);
        CHECK(npgpt_session_save(one, 0, 1, data, &error) == NPGPT_BAD_ARGUMENT && strstr(error.message, "changed"));
        CHECK(npgpt_session_load(two, ids, 1, data, NULL, &error) == NPGPT_BAD_ARGUMENT);
        npgpt_session_free(two);
        free(data);
    }

    for (int i = 0; i < 5; i++) { /* each alone, then together: the same to the bit */
        CHECK(!npgpt_session_new(model, 0, &many[i], &error));
        CHECK(!npgpt_feed(many[i], ids, (size_t)(1 + 5 * i), NULL, &error) && !npgpt_feed(many[i], ids + i, 1, NULL, &error));
        memcpy(logits + i * 257, npgpt_logits(many[i]), sizeof(first));
        npgpt_session_reset(many[i]);
        CHECK(!npgpt_feed(many[i], ids, (size_t)(1 + 5 * i), NULL, &error));
    }
    CHECK(!npgpt_feed_many((npgpt_session *const *)many, ids, 5, &error));
    for (int i = 0; i < 5; i++) CHECK(!memcmp(logits + i * 257, npgpt_logits(many[i]), sizeof(first)));
    many[4] = (npgpt_session_free(many[4]), many[3]);
    CHECK(npgpt_feed_many((npgpt_session *const *)many, ids, 5, &error) == NPGPT_BAD_ARGUMENT);
    for (int i = 0; i < 4; i++) npgpt_session_free(many[i]);
    npgpt_session_free(one);
    npgpt_session_free(NULL);
    free(logits);
}

static void check_generation(void) {
    npgpt_session *session;
    npgpt_generation how;
    npgpt_finish finish;
    struct text a = {{0}, 0, 0, 0}, b = a, c = a, d = a;
    const char *stops[2] = {"", NULL};
    char stop[5] = "";
    npgpt_default_generation(&how);
    how.max_new_tokens = 100, how.ignore_eos = 1, how.sampling.seed = 4;
    CHECK(!npgpt_session_new(model, 0, &session, &error));
    CHECK(!npgpt_generate(session, "O sol", 5, &how, append, &a, &finish, &error) && finish == NPGPT_FINISH_LENGTH);
    npgpt_session_reset(session);
    CHECK(!npgpt_generate(session, "O sol", 5, &how, append, &b, NULL, &error));
    CHECK(a.length == b.length && !memcmp(a.bytes, b.bytes, a.length));
    npgpt_session_reset(session);
    c.most = 3;
    CHECK(!npgpt_generate(session, "O sol", 5, &how, append, &c, &finish, &error) && finish == NPGPT_FINISH_CANCELLED);
    CHECK(c.pieces == 3 && !memcmp(a.bytes, c.bytes, c.length));
    memcpy(stop, a.bytes + 20, 4);
    stops[0] = stop, how.stop = stops, how.stop_count = 1;
    npgpt_session_reset(session);
    CHECK(!npgpt_generate(session, "O sol", 5, &how, append, &d, &finish, &error) && finish == NPGPT_FINISH_STOP);
    CHECK(d.length <= 20 && !memcmp(a.bytes, d.bytes, d.length));
    how.stop_count = 2;
    CHECK(npgpt_generate(session, "", 0, &how, append, &d, &finish, &error) == NPGPT_BAD_ARGUMENT);
    npgpt_session_reset(session);
    npgpt_session_slide(session, 0);
    how.stop_count = 0, how.max_new_tokens = 10000;
    CHECK(!npgpt_generate(session, NULL, 0, &how, NULL, NULL, &finish, &error) && finish == NPGPT_FINISH_FULL);
    CHECK(npgpt_session_length(session) == config.block_size);
    npgpt_session_free(session);
}

static void check_tensors(void) {
    enum { C = 8, V = 11, T = 5 };
    static float zeros[4 * C * C], ones[4 * C], wte[V * C], logits[T * V];
    npgpt_config small = {1, 2, C, T, V, 1e-5f, 0, 0, 0};
    npgpt_tensor tensors[] = {
        {"wte.weight", wte, V, C, 0},           {"wpe.weight", zeros, T, C, 0},
        {"h.0.ln_1.weight", ones, 1, C, 0},     {"h.0.attn.c_attn.weight", zeros, C, 3 * C, 0},
        {"h.0.ln_2.weight", ones, 1, C, 0},     {"h.0.attn.c_proj.weight", zeros, C, C, 1},
        {"ln_f.weight", ones, 1, C, 0},         {"h.0.mlp.c_fc.weight", zeros, 4 * C, C, 1},
        {"h.0.mlp.c_proj.weight", zeros, 4 * C, C, 0},
    };
    const int32_t ids[T] = {0, 3, 10, 2, 2};
    npgpt_model *made = NULL;
    npgpt_session *session;
    size_t n = sizeof(tensors) / sizeof(tensors[0]), count;
    for (int i = 0; i < 4 * C; i++) ones[i] = 1;
    for (int i = 0; i < V * C; i++) wte[i] = (float)(i * 37 % 19) - 9;
    CHECK(npgpt_from_tensors(&small, tensors, n - 1, &made, &error) == NPGPT_BAD_FORMAT && strstr(error.message, "c_proj"));
    tensors[3].columns = C;
    CHECK(npgpt_from_tensors(&small, tensors, n, &made, &error) == NPGPT_BAD_ARGUMENT && strstr(error.message, "c_attn"));
    tensors[3].columns = 3 * C;
    small.n_head = 3;
    CHECK(npgpt_from_tensors(&small, tensors, n, &made, &error) == NPGPT_BAD_FORMAT);
    small.n_head = 2;
    CHECK(!npgpt_from_tensors(&small, tensors, n, &made, &error) && !npgpt_has_tokenizer(made));
    CHECK(npgpt_encode(made, "a", 1, NULL, 0, &count, &error) == NPGPT_UNSUPPORTED);
    CHECK(!npgpt_session_new(made, 0, &session, &error));
    npgpt_free(made); /* the session keeps what it needs */
    CHECK(npgpt_generate(session, "a", 1, NULL, NULL, NULL, NULL, &error) == NPGPT_UNSUPPORTED);
    CHECK(!npgpt_feed(session, ids, T, logits, &error));
    for (int t = 0; t < T; t++) { /* no layer does anything: the logits are wte times its normed row */
        float mean = 0, square = 0, expected = 0;
        for (int c = 0; c < C; c++) mean += wte[ids[t] * C + c] / C;
        for (int c = 0; c < C; c++) square += (wte[ids[t] * C + c] - mean) * (wte[ids[t] * C + c] - mean) / C;
        for (int c = 0; c < C; c++) expected += (wte[ids[t] * C + c] - mean) * wte[5 * C + c];
        const float error_squared = (logits[t * V + 5] * logits[t * V + 5]) * square - expected * expected;
        CHECK(error_squared < 0.01f * (1 + expected * expected) && error_squared > -0.01f * (1 + expected * expected));
    }
    wte[0] = 1.0f / 0.0f - 1.0f / 0.0f;
    npgpt_touch(model);
    CHECK(!npgpt_feed(session, ids, 1, NULL, &error));
    npgpt_sampling sampling;
    int32_t id;
    npgpt_default_sampling(&sampling);
    CHECK(npgpt_sample(session, &sampling, &id, &error) == NPGPT_NOT_FINITE);
    npgpt_session_free(session);
}

static void check_packed(void) { /* the same logits, of the numbers that there were until npgpt_touch */
    enum { C = 24, V = 7, T = 4 };
    static float some[4 * C * C], ones[C];
    npgpt_config config = {1, 3, C, T, V, 1e-5f, 0, 0, 0, 0};
    const npgpt_tensor tensors[] = {
        {"wte.weight", some, V, C, 0},          {"wpe.weight", some + C, T, C, 0},
        {"h.0.ln_1.weight", ones, 1, C, 0},     {"h.0.attn.c_attn.weight", some, C, 3 * C, 0},
        {"h.0.ln_2.weight", ones, 1, C, 0},     {"h.0.attn.c_proj.weight", some, C, C, 1},
        {"ln_f.weight", ones, 1, C, 0},         {"h.0.mlp.c_fc.weight", some, C, 4 * C, 0},
        {"h.0.mlp.c_proj.weight", some, 4 * C, C, 0},
    };
    const int32_t ids[T] = {1, 6, 0, 3};
    float logits[5][V];
    npgpt_model *made = NULL;
    npgpt_session *session;
    for (int i = 0; i < C; i++) ones[i] = 1;
    for (int i = 0; i < 4 * C * C; i++) some[i] = (float)(i * 37 % 19 - 9) / 9;
    CHECK(npgpt_pack(NULL, &error) == NPGPT_BAD_ARGUMENT && !npgpt_pack(model, &error));
    CHECK(!npgpt_from_tensors(&config, tensors, sizeof(tensors) / sizeof(tensors[0]), &made, &error));
    CHECK(!npgpt_session_new(made, 0, &session, &error));
    for (int turn = 0; turn < 5; turn++) {
        if (turn == 1 || turn == 4) CHECK(!npgpt_pack(made, &error) && !npgpt_pack(made, &error));
        if (turn == 2) /* nobody is told */
            for (int i = C * C; i < 4 * C * C; i++) some[i] = -some[i]; /* c_proj, which is not copied, is before */
        if (turn == 3) npgpt_touch(made);
        npgpt_session_reset(session);
        for (int t = 0; t < T; t++) CHECK(!npgpt_feed(session, ids + t, 1, NULL, &error));
        memcpy(logits[turn], npgpt_logits(session), sizeof(logits[turn]));
    }
    for (int turn = 1; turn < 5; turn++)
        CHECK(!memcmp(logits[turn], logits[turn < 3 ? 0 : 3], sizeof(logits[0])));
    CHECK(memcmp(logits[0], logits[3], sizeof(logits[0])));
    npgpt_session_free(session), npgpt_free(made);
}

static struct text told[4];

static void *tell(void *at) { /* sessions of one model on several threads */
    npgpt_session *session;
    npgpt_generation how;
    npgpt_default_generation(&how);
    how.max_new_tokens = 60, how.ignore_eos = 1;
    CHECK(!npgpt_session_new(model, 0, &session, &error));
    CHECK(!npgpt_generate(session, "O mar e a terra", 15, &how, append, at, NULL, NULL));
    npgpt_session_free(session);
    return NULL;
}

static void check_guesses(void) { /* alone and in company, to the end of the context and beyond */
    npgpt_session *plain, *guessing, *both[2];
    CHECK(!npgpt_session_new(model, 40, &plain, &error) && !npgpt_session_new(model, 40, &guessing, &error));
    npgpt_session_speculate(guessing, 1);
    both[0] = plain, both[1] = guessing;
    for (int i = 0; i < 150; i++) {
        const int32_t id = i * i % (i % 11 ? 6 : 7), ids[2] = {id, id};
        if (i % 13 == 12) {
            CHECK(!npgpt_feed_many(both, ids, 2, &error));
        } else {
            CHECK(!npgpt_feed(plain, &id, 1, NULL, &error) && !npgpt_feed(guessing, &id, 1, NULL, &error));
        }
        CHECK(npgpt_session_length(plain) == npgpt_session_length(guessing));
        CHECK(!memcmp(npgpt_logits(plain), npgpt_logits(guessing), 257 * sizeof(float)));
    }
    npgpt_session_free(plain);
    npgpt_session_free(guessing);
}

int main(int argc, char **argv) {
    pthread_t threads[4];
    if (argc != 2) return 2;
    check_opening(argv[1]);
    check_kernels();
    check_text();
    check_sessions();
    check_guesses();
    check_generation();
    check_tensors();
    check_packed();
    for (int i = 0; i < 4; i++) CHECK(!pthread_create(&threads[i], NULL, tell, &told[i]));
    CHECK(!npgpt_set_threads(3, NULL)); /* while they run */
    for (int i = 0; i < 4; i++) CHECK(!pthread_join(threads[i], NULL));
    for (int i = 1; i < 4; i++)
        CHECK(told[i].length == told[0].length && !memcmp(told[i].bytes, told[0].bytes, told[0].length));
    npgpt_free(model);
    puts("all holds");
    return 0;
}
