/* Training in C: a GPT of GPT-2's shape learns from a text, with the very kernels of npgpt.train. No Python anywhere.
 *
 *     npgpt_train_config how;
 *     npgpt_train *train;
 *     npgpt_train_default(&how);
 *     if (npgpt_train_new(&how, text, length, &train, &error)) ... error.message
 *     while (npgpt_train_step(train, &now, &error) == NPGPT_OK) printf("%d %f\n", now.step, now.loss);
 *
 * Of one text, config and kernels every step gives the same bits, on any number of threads, however often it was saved and
 * loaded; and they are the bits of `npgpt.train --optimizer adamw` with the same settings. Statuses, errors
 * and threads are those of npgpt.h; a handle is for one thread at a time.
 */
#ifndef NPGPT_TRAIN_H
#define NPGPT_TRAIN_H

#include "npgpt.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct npgpt_train npgpt_train;

typedef struct npgpt_train_config {
    int32_t n_layer, n_head, n_embd; /* n_head divides n_embd */
    int32_t block_size;              /* the context: tokens of a window */
    int32_t bpe;                     /* 0: tokens are bytes; else a BPE of so many, learnt from what is trained on */
    int32_t batch_size;              /* windows of a step */
    int32_t steps;                   /* in all */
    int32_t warmup; /* steps in which the learning rate rises to lr; then it falls in a line to min_lr */
    double lr, min_lr;
    double weight_decay; /* of matrices, not of biases and norms */
    double clip; /* the gradients' norm at most */
    double dropout; /* share of the activations, in [0, 1) */
    double train_share; /* of the text, in (0, 1]; the rest is for npgpt_train_validate */
    uint32_t seed; /* of the first weights, the order of the windows and dropout */
} npgpt_train_config;

/* 4 layers of 128 channels and 4 heads, windows of 128 bytes, 8 of them a step, 600 steps; lr 0.004, min_lr a 50th of it, warm-up
 * 50 steps, weight decay 0.1, clip 1, no dropout, all of the text, seed 0. */
NPGPT_API void npgpt_train_default(npgpt_train_config *config);

/* Begins with weights drawn as GPT-2's. text[0..length): any bytes, at least two; it is read into memory. */
NPGPT_API npgpt_status npgpt_train_new(const npgpt_train_config *config, const char *text, size_t length,
                                       npgpt_train **train, npgpt_error *error);

/* Goes on where npgpt_train_save left off, with the same text: another one is NPGPT_BAD_ARGUMENT. A file that is cut off or
 * changed is NPGPT_BAD_FORMAT. */
NPGPT_API npgpt_status npgpt_train_load(const char *path, const char *text, size_t length, npgpt_train **train,
                                        npgpt_error *error);

NPGPT_API void npgpt_train_free(npgpt_train *train); /* NULL is allowed */
NPGPT_API void npgpt_train_get_config(const npgpt_train *train, npgpt_train_config *config);

typedef struct npgpt_train_progress {
    int32_t step; /* that was done, from 1 */
    double loss; /* of its windows before it, in nats a token */
    double lr; /* its learning rate */
    double grad_norm; /* before clipping */
    int64_t tokens; /* learnt in all steps so far */
} npgpt_train_progress;

/* Does a step; NPGPT_FULL behind the last one. NPGPT_NOT_FINITE where the loss or a gradient is no number: the step is
 * counted, but the weights stay. progress may be NULL. */
NPGPT_API npgpt_status npgpt_train_step(npgpt_train *train, npgpt_train_progress *progress, npgpt_error *error);

/* The loss, in nats a token, of the text that is not trained on: of at most about max_tokens of it, evenly spaced, 0 for
 * all. */
NPGPT_API npgpt_status npgpt_train_validate(npgpt_train *train, size_t max_tokens, double *loss, npgpt_error *error);

/* Writes all that npgpt_train_load needs. The file of this name is replaced in one go: after a fault, or a power cut, it is
 * the old one or the new one. */
NPGPT_API npgpt_status npgpt_train_save(const npgpt_train *train, const char *path, npgpt_error *error);

/* Writes the model as a GGUF file in float32, which npgpt_open, npgpt.load and llama.cpp read; in one go, too. */
NPGPT_API npgpt_status npgpt_train_export(const npgpt_train *train, const char *path, npgpt_error *error);

#ifdef __cplusplus
}
#endif
#endif
