// The pool where a program has one thread, as in a web page: the thread that calls.
#include "pool.h"

namespace npgpt {

int usable_cpus() { return 1; }
int num_threads() { return 1; }
void set_num_threads(int) {}
void sleep_briefly() {}

void run_parallel(std::ptrdiff_t count, Item body, void* context, int) {
    for (std::ptrdiff_t i = 0; i < count; i++) body(context, i, 0);
}

}  // namespace npgpt
