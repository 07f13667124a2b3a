/* tokens MODEL.gguf KERNELS TEMPERATURE COUNT: the ids that follow id 65, one a line, then the logits behind the last.
 * test_targets.py builds it for one machine after another, and compares. */
#include <npgpt.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    npgpt_error error = {""};
    npgpt_model *model = NULL;
    npgpt_session *session = NULL;
    npgpt_config config;
    npgpt_sampling sampling;
    int32_t id = 65;
    int i;

    if (argc != 5) return 2;
    npgpt_default_sampling(&sampling);
    sampling.temperature = atof(argv[3]);
    sampling.seed = 7;
    if (npgpt_open(argv[1], &model, &error) || npgpt_use_kernels(model, argv[2], &error) ||
        npgpt_session_new(model, 0, &session, &error))
        goto failed;
    for (i = 0; i < atoi(argv[4]); i++) {
        if (npgpt_feed(session, &id, 1, NULL, &error) || npgpt_sample(session, &sampling, &id, &error)) goto failed;
        printf("%d\n", (int)id);
    }
    npgpt_get_config(model, &config);
    for (i = 0; i < config.vocab_size; i++) printf("%.9g\n", npgpt_logits(session)[i]);
    npgpt_session_free(session);
    npgpt_free(model);
    return 0;
failed:
    fprintf(stderr, "tokens: %s\n", error.message);
    return 1;
}
