/* generate MODEL.gguf [PROMPT [TOKENS [SEED]]]: a trained GPT writes, in plain C.
 *
 *     cc generate.c $(python -m npgpt.embed --cflags --libs) -o generate
 */
#include <npgpt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int print(void *user, const char *text, size_t length) {
    (void)user;
    return fwrite(text, 1, length, stdout) != length || fflush(stdout) != 0;
}

int main(int argc, char **argv) {
    npgpt_error error = {""};
    npgpt_model *model = NULL;
    npgpt_session *session = NULL;
    npgpt_generation how;
    const char *prompt = argc > 2 ? argv[2] : "";
    npgpt_status status;

    if (argc < 2 || argc > 5) {
        fprintf(stderr, "usage: generate MODEL.gguf [PROMPT [TOKENS [SEED]]]\n");
        return 2;
    }
    npgpt_default_generation(&how);
    if (argc > 3) how.max_new_tokens = atoi(argv[3]);
    if (argc > 4) how.sampling.seed = strtoull(argv[4], NULL, 10);

    status = npgpt_open(argv[1], &model, &error);
    if (!status) status = npgpt_session_new(model, 0, &session, &error);
    if (!status) {
        fputs(prompt, stdout);
        status = npgpt_generate(session, prompt, strlen(prompt), &how, print, NULL, NULL, &error);
        putchar('\n');
    }
    if (status) fprintf(stderr, "generate: %s\n", error.message);
    npgpt_session_free(session);
    npgpt_free(model);
    return status ? 1 : 0;
}
