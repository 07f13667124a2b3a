// What of threads differs by system: system_linux.cpp, system_posix.cpp, system_windows.cpp. usable_cpus() and
// sleep_briefly() of pool.h are there too. A program of one thread has pool_none.cpp instead, and needs none of them.
#pragma once
#include <thread>
#include <vector>

namespace npgpt {

// Calls these around a fork of the process, if the system has such. Returns a number that means nothing.
int at_fork(void (*before)(), void (*in_parent)(), void (*in_child)());

// A woken worker tends to be put on the CPU of the thread that woke it, where the two then take turns (seen on Linux for
// the first two seconds of a process). So workers may run anywhere but where the caller is. look_at_cpus asks which CPUs
// there are for so many threads, before the pool's first job; a system that places threads well does nothing in either.
void look_at_cpus(int threads);
void leave_cpu_to_caller(std::vector<std::thread>& workers);

}  // namespace npgpt
