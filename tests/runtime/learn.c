/* learn TEXT STATE MODEL.gguf STOP THREADS NAME=VALUE...: trains by npgpt_train.h, for test_training.py.
 *
 * Goes on from STATE where it is there, writes it and MODEL.gguf behind step STOP, and tells the loss of each step, then that of
 * what is held out. Names are those of npgpt_train_config. A fault is a line of status and message.
 */
#include <npgpt_train.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static npgpt_error error;

static int told(npgpt_status status) {
    if (status) printf("status %d: %s\n", (int)status, error.message);
    return status != NPGPT_OK;
}

static void set(npgpt_train_config *how, const char *word) {
    const char *value = strchr(word, '=') + 1;
    size_t n = (size_t)(value - word) - 1;
#define WHOLE(name) \
    if (n == strlen(#name) && !strncmp(word, #name, n)) how->name = atoi(value)
#define REAL(name) \
    if (n == strlen(#name) && !strncmp(word, #name, n)) how->name = atof(value)
    WHOLE(n_layer);
    WHOLE(n_head);
    WHOLE(n_embd);
    WHOLE(block_size);
    WHOLE(bpe);
    WHOLE(batch_size);
    WHOLE(steps);
    WHOLE(warmup);
    REAL(lr);
    REAL(min_lr);
    REAL(weight_decay);
    REAL(clip);
    REAL(dropout);
    REAL(train_share);
    if (!strncmp(word, "seed=", 5)) how->seed = (uint32_t)strtoul(value, NULL, 10);
}

int main(int argc, char **argv) {
    npgpt_train_config how;
    npgpt_train_progress now = {0, 0, 0, 0, 0};
    npgpt_train *train = NULL;
    npgpt_status status;
    static char text[1 << 20];
    double held_out;
    size_t length;
    FILE *file = fopen(argv[1], "rb");
    int stop = atoi(argv[4]), i;

    length = fread(text, 1, sizeof(text), file);
    fclose(file);
    npgpt_set_threads(atoi(argv[5]), NULL);
    npgpt_train_default(&how);
    for (i = 6; i < argc; i++) set(&how, argv[i]);
    file = fopen(argv[2], "rb");
    if (file) fclose(file);
    status = file ? npgpt_train_load(argv[2], text, length, &train, &error)
                  : npgpt_train_new(&how, text, length, &train, &error);
    if (told(status)) return 1;
    npgpt_train_get_config(train, &how);
    while (now.step < stop) {
        status = npgpt_train_step(train, &now, &error);
        if (status == NPGPT_NOT_FINITE) printf("skipped ");
        else if (told(status)) break;
        printf("%d %.17g %.17g %.17g %lld\n", (int)now.step, now.loss, now.lr, now.grad_norm, (long long)now.tokens);
    }
    if (how.train_share < 1 && !told(npgpt_train_validate(train, 65536, &held_out, &error)))
        printf("held out %.17g\n", held_out);
    told(npgpt_train_save(train, argv[2], &error));
    told(npgpt_train_export(train, argv[3], &error));
    npgpt_train_free(train);
    return 0;
}
