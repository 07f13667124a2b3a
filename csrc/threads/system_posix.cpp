#include <pthread.h>
#include <unistd.h>

#include <chrono>

#include "pool.h"
#include "system.h"

namespace npgpt {

int usable_cpus() {
    const long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    return cpus < 1 ? 1 : int(cpus);
}

void sleep_briefly() { std::this_thread::sleep_for(std::chrono::microseconds(50)); }

int at_fork(void (*before)(), void (*in_parent)(), void (*in_child)()) {
    return pthread_atfork(before, in_parent, in_child);
}

void look_at_cpus(int) {}
void leave_cpu_to_caller(std::vector<std::thread>&) {}

}  // namespace npgpt
