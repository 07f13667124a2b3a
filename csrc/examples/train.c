/* train TEXT STATE MODEL.gguf [STEPS]: a GPT learns from a text, in plain C, and goes on where it was stopped.
 *
 *     g++ -std=c++17 -O2 -DNPGPT_TRAIN -pthread train.c npgpt.cpp npgpt_train.cpp -o train
 */
#include <npgpt_train.h>
#include <stdio.h>
#include <stdlib.h>

static char *read_text(const char *path, size_t *length) {
    FILE *file = fopen(path, "rb");
    char *text = NULL;
    *length = 0;
    while (file && (text = (char *)realloc(text, *length + 65536)) != NULL) {
        size_t n = fread(text + *length, 1, 65536, file);
        *length += n;
        if (n == 0) break;
    }
    if (file) fclose(file);
    return text;
}

int main(int argc, char **argv) {
    npgpt_error error = {""};
    npgpt_train_config how;
    npgpt_train_progress now;
    npgpt_train *train = NULL;
    npgpt_status status;
    size_t length;
    char *text;
    FILE *state;

    if (argc < 4 || argc > 5) {
        fprintf(stderr, "usage: train TEXT STATE MODEL.gguf [STEPS]\n");
        return 2;
    }
    npgpt_train_default(&how);
    if (argc > 4) how.steps = atoi(argv[4]);
    if (how.warmup > how.steps / 10) how.warmup = how.steps / 10;
    text = read_text(argv[1], &length);
    state = fopen(argv[2], "rb");
    if (state) fclose(state);
    status = state ? npgpt_train_load(argv[2], text, length, &train, &error)
                   : npgpt_train_new(&how, text, length, &train, &error);
    while (!status && !(status = npgpt_train_step(train, &now, &error))) {
        printf("step %d: loss %.17g\n", (int)now.step, now.loss);
        fflush(stdout);
        if (now.step % 50 == 0) status = npgpt_train_save(train, argv[2], &error);
    }
    if (status == NPGPT_FULL) status = npgpt_train_save(train, argv[2], &error);
    if (!status) status = npgpt_train_export(train, argv[3], &error);
    if (status) fprintf(stderr, "train: %s\n", error.message);
    npgpt_train_free(train);
    free(text);
    return status ? 1 : 0;
}
