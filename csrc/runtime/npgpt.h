/* libnpgpt: a trained GPT inside any program. No Python, no BLAS, no OpenMP; C99 and a C ABI.
 *
 *     npgpt_error error;
 *     npgpt_model *model;
 *     npgpt_session *session;
 *     if (npgpt_open("model.gguf", &model, &error) || npgpt_session_new(model, 0, &session, &error)) ... error.message
 *     npgpt_generate(session, "O sol", 5, NULL, print, NULL, NULL, &error);
 *
 * A function that can fail returns a status, NPGPT_OK being 0, and leaves one line about it in *error (which may be
 * NULL); arguments that are refused change nothing. No function exits, aborts, prints or keeps state outside of the handles, but for the
 * one pool of threads. A model may be used from any number of threads at once, a session from one at a time.
 *
 * Ids are tokens, 0 <= id < V. V is the size of the vocabulary.
 */
#ifndef NPGPT_H
#define NPGPT_H

#include <stddef.h>
#include <stdint.h>

#if defined(__ELF__) /* elsewhere nothing is hidden */
#define NPGPT_API __attribute__((visibility("default")))
#else
#define NPGPT_API
#endif

#define NPGPT_ABI_VERSION 3

#ifdef __cplusplus
extern "C" {
#endif

typedef enum npgpt_status {
    NPGPT_OK = 0,
    NPGPT_BAD_ARGUMENT = 1, /* null, out of range, an id that is none */
    NPGPT_BAD_FILE = 2,     /* cannot be opened or read */
    NPGPT_BAD_FORMAT = 3,   /* a GGUF file that is malformed: the message says what is wrong where */
    NPGPT_UNSUPPORTED = 4,  /* a sound file of another architecture, type or tokenizer */
    NPGPT_NO_MEMORY = 5,
    NPGPT_FULL = 6,         /* the context is full, and the session stops there */
    NPGPT_NOT_FINITE = 7,   /* the model computes no numbers: its weights are broken */
    NPGPT_INTERNAL = 8
} npgpt_status;

typedef struct npgpt_error {
    char message[256]; /* one line of UTF-8 */
} npgpt_error;

typedef struct npgpt_model npgpt_model;
typedef struct npgpt_session npgpt_session;

NPGPT_API uint32_t npgpt_abi_version(void); /* NPGPT_ABI_VERSION of the library */

/* ---- threads: one pool for the whole process, by default of as many as the CPUs it may use */
NPGPT_API int npgpt_threads(void);
NPGPT_API npgpt_status npgpt_set_threads(int threads, npgpt_error *error); /* waits for work that runs */

/* ---- models */

/* A GGUF file, architecture gpt2, llama or npgpt; types F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K,
 * IQ4_NL, IQ4_XS. It is mapped, not read: keep it as it is. */
NPGPT_API npgpt_status npgpt_open(const char *path, npgpt_model **model, npgpt_error *error);

/* The same from memory, which must stay until the model and its sessions are freed. data: on 32 bytes. */
NPGPT_API npgpt_status npgpt_open_memory(const void *data, size_t size, npgpt_model **model, npgpt_error *error);

typedef struct npgpt_config {
    int32_t n_layer, n_head, n_embd;
    int32_t block_size; /* the longest context, in tokens */
    int32_t vocab_size; /* V */
    float layer_norm_epsilon;
    float scale;       /* of attention scores; 0: 1 / sqrt(head_size) */
    int32_t window;    /* tokens that the layers 1, 3, ... see; 0: all */
    int32_t post_norm; /* 1: GPT-1's order, layernorms behind the sums */
    int32_t exact_gelu; /* 1: x Phi(x), as nanoGPT has it, and not its tanh form */
    /* Llama's shape; all of these 0: GPT-2's */
    int32_t n_kv_head; /* heads of keys and of values, which divide n_head; 0: n_head */
    int32_t head_size; /* numbers in a head; 0: n_embd / n_head */
    int32_t n_inner;   /* numbers inside an MLP; 0: 4 n_embd */
    int32_t rms_norm;  /* 1: RMSNorm for layernorm */
    int32_t gated;     /* 1: SwiGLU; "mlp.c_fc" makes 2 n_inner numbers, the gates before what they let through */
    float rope_theta;  /* rotary positions: pair i turns by theta^(-2i/head_size) a token; 0: learned ones */
    float rope_factor; /* they turn so many times slower; 0: 1 */
    float rope_low;    /* llama3's: all that holds for pairs of less turns in rope_context */
    float rope_high;   /* and not at all for those of more; 0: for all */
    float rope_context; /* the context before it was made longer, in tokens */
} npgpt_config;

typedef struct npgpt_tensor {
    const char *name; /* GPT-2's: "wte.weight" (V,C), "wpe.weight" (T,C), "h.0.attn.c_attn.weight", ... */
    const float *data;
    int32_t rows, columns; /* rows 1 for a vector */
    int32_t transposed;    /* a linear layer's matrix is (in,out) as in GPT-2's files; 1: (out,in) */
} npgpt_tensor;

/* From float32 tensors, which are not copied and must stay. A bias that is not among them is zero; without
 * "lm_head.weight" (V,C) the head is wte; "rope_freqs.weight" (head_size/2), where it is, divides the speeds of rotary
 * positions. Such a model has no tokenizer: it takes ids. */
NPGPT_API npgpt_status npgpt_from_tensors(const npgpt_config *config, const npgpt_tensor *tensors, size_t count,
                                          npgpt_model **model, npgpt_error *error);

/* Copies (in,out) matrices into the order in which they are read fastest, until npgpt_touch says that they have changed:
 * up to 1.8 times the tokens a second where memory limits, the same to the bit. Of other models it does nothing. */
NPGPT_API npgpt_status npgpt_pack(npgpt_model *model, npgpt_error *error);

/* The tensors have been changed: sessions read their text again when they go on. */
NPGPT_API void npgpt_touch(npgpt_model *model);

NPGPT_API void npgpt_free(npgpt_model *model); /* NULL is allowed; sessions keep what they need */
NPGPT_API void npgpt_get_config(const npgpt_model *model, npgpt_config *config);

/* Which compiled kernels compute: "auto" (the best, the default), "baseline", "avx2", "avx512vnni". */
NPGPT_API npgpt_status npgpt_use_kernels(npgpt_model *model, const char *name, npgpt_error *error);
NPGPT_API const char *npgpt_kernels(const npgpt_model *model);

/* ---- text
 *
 * Text is read as it is. A model that learnt cleaned text (npgpt.train --clean light, its default) knows line ends \n and
 * composed characters (Unicode NFC) alone, and no byte-order mark: prompts must be so. Python's side makes them so. */

NPGPT_API int npgpt_has_tokenizer(const npgpt_model *model);
NPGPT_API int32_t npgpt_end_of_text(const npgpt_model *model); /* its id, -1 if there is none */

/* The id with which every text of this model begins, -1 if there is none. npgpt_generate puts it before the
 * first prompt of a session; who feeds ids feeds it first. */
NPGPT_API int32_t npgpt_begin_of_text(const npgpt_model *model);

/* The ids of text[0..length), any bytes, without npgpt_begin_of_text; special tokens are not looked for. *count
 * receives how many, at most length + 1, and ids, with room for `room`, the first of them. */
NPGPT_API npgpt_status npgpt_encode(const npgpt_model *model, const char *text, size_t length, int32_t *ids,
                                    size_t room, size_t *count, npgpt_error *error);

/* The bytes of an id, which may be part of a character; *length receives how many. NULL for an id that is none. They stay
 * as long as the model. */
NPGPT_API const char *npgpt_token_bytes(const npgpt_model *model, int32_t id, size_t *length);

/* ---- sessions: a text that grows, with its cache of keys and values */

/* context: tokens at most, 0 for the model's block_size. It takes the memory that feeding it and drawing from it need: these
 * allocate nothing, but for more threads than there are now. */
NPGPT_API npgpt_status npgpt_session_new(npgpt_model *model, int32_t context, npgpt_session **session,
                                         npgpt_error *error);
NPGPT_API void npgpt_session_free(npgpt_session *session);
NPGPT_API void npgpt_session_reset(npgpt_session *session);         /* an empty text again */
NPGPT_API int32_t npgpt_session_length(const npgpt_session *session); /* tokens in the cache */

/* Empties the cache to read a text anew, of one that goes on: what was seen and drawn still counts. */
NPGPT_API void npgpt_session_forget(npgpt_session *session);

/* Goes back to the first count tokens in the cache, as if these alone had been fed and nothing drawn. What is fed next
 * follows them. */
NPGPT_API npgpt_status npgpt_session_rewind(npgpt_session *session, size_t count, npgpt_error *error);

/* Copies the keys and values of count tokens in the cache, from the token first on, to data: (n_layer, 2, n_kv_head,
 * count, head_size) floats. */
NPGPT_API npgpt_status npgpt_session_save(const npgpt_session *session, size_t first, size_t count, float *data,
                                          npgpt_error *error);

/* Appends ids[0..count) without reading them: data is what npgpt_session_save copied from a session of this model behind
 * the same text, with the same ids. logits (V), which may be NULL, are those behind the last of them; without, the session
 * has none until it is fed. */
NPGPT_API npgpt_status npgpt_session_load(npgpt_session *session, const int32_t *ids, size_t count, const float *data,
                                          const float *logits, npgpt_error *error);

/* At the end of the context: 1 (the default) forgets the older half and reads the rest again; 0 fails with NPGPT_FULL. */
NPGPT_API void npgpt_session_slide(npgpt_session *session, int slide);

/* 1: behind a single id that is fed, what followed its like before is guessed and read with it, up to four ids in one pass.
 * Fed next, such an id costs nothing. The text and its logits are the same to the bit; it pays for large models and texts
 * that repeat themselves or their prompt. 0 is the default. */
NPGPT_API void npgpt_session_speculate(npgpt_session *session, int speculate);

/* Appends ids[0..count), count >= 1. Of a first text longer than the context the end is read. With logits, (count,V), those
 * behind each id are written; count must then fit the context. */
NPGPT_API npgpt_status npgpt_feed(npgpt_session *session, const int32_t *ids, size_t count, float *logits,
                                  npgpt_error *error);

/* The same, and hidden (count,C) receives the state behind each id that the head makes logits of: an embedding. */
NPGPT_API npgpt_status npgpt_feed_hidden(npgpt_session *session, const int32_t *ids, size_t count, float *hidden,
                                         npgpt_error *error);

/* One id to each of several sessions of one model, computed together: faster than one by one, and the same to the bit. */
NPGPT_API npgpt_status npgpt_feed_many(npgpt_session *const *sessions, const int32_t *ids, size_t count,
                                       npgpt_error *error);

/* (V) what comes behind the last id; NULL before the first. Valid until the session is fed again. */
NPGPT_API const float *npgpt_logits(const npgpt_session *session);

/* ---- sampling */

typedef struct npgpt_sampling {
    double temperature;        /* 0: the most likely token */
    double top_p;              /* only the most likely that together reach this probability; 1: all */
    double min_p;              /* only those at least so many times as likely as the most likely; 0: all */
    double repetition_penalty; /* above 1: tokens of the session become less likely; 1: no */
    uint64_t seed;             /* the same seed and text give the same draws, on any number of threads */
    int32_t top_k;             /* only so many; 0: all */
    int32_t banned;            /* an id that never comes; -1: none */
    double presence_penalty;   /* taken from the logits of the ids drawn before; 0: no */
    double frequency_penalty;  /* the same, as many times as each was drawn; 0: no */
} npgpt_sampling;

NPGPT_API void npgpt_default_sampling(npgpt_sampling *sampling); /* temperature 0.8, seed 0, the rest off */

/* Added to the logits before all else, from now on: bias (V), copied. NULL: nothing again. */
NPGPT_API npgpt_status npgpt_session_bias(npgpt_session *session, const float *bias, npgpt_error *error);

/* The ids that may be drawn from now on: bit id % 32 of ids[id / 32], (V + 31) / 32 words, copied. NULL: all ids again.
 * With a set made anew before each draw, a text keeps to a grammar. */
NPGPT_API npgpt_status npgpt_session_allow(npgpt_session *session, const uint32_t *ids, npgpt_error *error);

/* Draws an id from the logits. It is not fed. Draws are counted, from 0 after a reset. */
NPGPT_API npgpt_status npgpt_sample(npgpt_session *session, const npgpt_sampling *sampling, int32_t *id,
                                    npgpt_error *error);

/* ---- generation of text */

typedef struct npgpt_generation {
    npgpt_sampling sampling;
    int32_t max_new_tokens;
    int32_t ignore_eos;     /* 1: the end of text never comes, and no other token ends the text */
    const char *const *stop; /* stop[0..stop_count): the text ends before the first of these */
    size_t stop_count;
} npgpt_generation;

NPGPT_API void npgpt_default_generation(npgpt_generation *generation); /* 200 tokens, default sampling, no stops */

typedef enum npgpt_finish {
    NPGPT_FINISH_LENGTH = 0,    /* max_new_tokens */
    NPGPT_FINISH_END = 1,       /* the model ended the text */
    NPGPT_FINISH_STOP = 2,      /* a stop string */
    NPGPT_FINISH_CANCELLED = 3, /* the callback said so */
    NPGPT_FINISH_FULL = 4       /* the context is full, and the session does not slide */
} npgpt_finish;

/* Receives the text piece by piece, whole characters of valid UTF-8 (bytes that are none come as U+FFFD). Not 0 ends it. */
typedef int (*npgpt_on_text)(void *user, const char *text, size_t length);

/* Feeds prompt[0..length) to the session (nothing, to a new one: an end of text) and lets the model go on. generation
 * may be NULL for the default, finish NULL. */
NPGPT_API npgpt_status npgpt_generate(npgpt_session *session, const char *prompt, size_t length,
                                      const npgpt_generation *generation, npgpt_on_text on_text, void *user,
                                      npgpt_finish *finish, npgpt_error *error);

#ifdef __cplusplus
}
#endif
#endif
