#ifndef NOMINMAX
#define NOMINMAX
#endif
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include "pool.h"
#include "system.h"

namespace npgpt {

int usable_cpus() {
    DWORD_PTR process = 0, machine = 0;  // bits: the CPUs of this process's group that it may use
    if (!GetProcessAffinityMask(GetCurrentProcess(), &process, &machine)) return 1;
    int cpus = 0;
    for (; process; process &= process - 1) cpus++;
    return cpus < 1 ? 1 : cpus;
}

void sleep_briefly() { Sleep(0); }  // Sleep(1) may take 16 ms

int at_fork(void (*)(), void (*)(), void (*)()) { return 0; }

void look_at_cpus(int) {}
void leave_cpu_to_caller(std::vector<std::thread>&) {}

}  // namespace npgpt
