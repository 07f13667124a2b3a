/* Every allocation of training fails once, and in a second round all from then on: allocations_training FOLDER.
 *
 * The losses and the files are then those of a run without failures. test_training.py runs it. */
#include <npgpt_train.h>

#include "failing.h"

static const char TEXT[] = "O sol e a lua e o mar, a noite e o dia, o mar e a lua e o sol, e a noite.";

static void work(const char *folder, struct text *text) {
    npgpt_train_config how;
    npgpt_train_progress now;
    npgpt_train *train = NULL, *again = NULL;
    double loss;
    char state[256], model[256];
    text->length = 0;
    snprintf(state, sizeof(state), "%s/state", folder);
    snprintf(model, sizeof(model), "%s/m.gguf", folder);

    npgpt_train_default(&how);
    how.n_layer = 2, how.n_head = 2, how.n_embd = 32, how.block_size = 16, how.batch_size = 2, how.steps = 5;
    how.warmup = 1, how.dropout = 0.1, how.train_share = 0.7, how.bpe = 260;
    TRY(npgpt_train_new(&how, TEXT, sizeof(TEXT) - 1, &train, &error));
    for (int i = 0; i < 3; i++) {
        TRY(npgpt_train_step(train, &now, &error));
        append(text, (const char *)&now, sizeof(now));
    }
    TRY(npgpt_train_validate(train, 0, &loss, &error));
    append(text, (const char *)&loss, sizeof(loss));
    TRY(npgpt_train_save(train, state, &error));
    TRY(npgpt_train_load(state, TEXT, sizeof(TEXT) - 1, &again, &error));
    npgpt_train_free(train);
    for (int i = 0; i < 2; i++) {
        TRY(npgpt_train_step(again, &now, &error));
        append(text, (const char *)&now, sizeof(now));
    }
    TRY(npgpt_train_export(again, model, &error));
    npgpt_train_free(again);
}

int main(int count, char **arguments) { return count == 2 ? all_fail(work, arguments[1]) : 2; }
