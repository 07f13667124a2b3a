// The one thread pool of a process. Workers are made at first use, spin briefly for the next job and then sleep.
// No OpenMP: nothing here clashes with another library's runtime, and a forked child gets a pool of its own.
// pool_threads.cpp is that; pool_none.cpp, for where a program has one thread, is the calling thread alone.
#pragma once
#include <cstddef>
#include <type_traits>

namespace npgpt {

// The CPUs that this process may use: its affinity mask, cut to the cgroup's CPU quota (v2 or v1), at least 1.
int usable_cpus();

[[gnu::visibility("default")]] int num_threads();
[[gnu::visibility("default")]] void set_num_threads(int n);  // n >= 1; waits for a running job

// Calls body(context, i, worker) once for each i in [0, count), on any thread, in any order; returns when all are done.
// worker tells apart the threads of this job, an index for work space: it stays below `workers`, whatever another thread
// does to num_threads() meanwhile. body must not throw: see parallel/throwing.h for those that may.
// A call from inside a job, or while another thread's job runs, does its work on the calling thread alone.
// Denormal floats count as zero while body runs; the caller's floating-point mode is restored.
using Item = void (*)(void* context, std::ptrdiff_t i, int worker);
[[gnu::visibility("default")]] void run_parallel(std::ptrdiff_t count, Item body, void* context, int workers);

// What a thread does that waits for one whose core another program has
[[gnu::visibility("default")]] void sleep_briefly();

// What a thread does in a loop while it waits for another core
inline void pause_cpu() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Any body as an Item, whose context is the body's address
template <class Body>
void call_body(void* context, std::ptrdiff_t i, int worker) {
    (*static_cast<Body*>(context))(i, worker);
}

template <class Body>
void parallel_for(std::ptrdiff_t count, Body&& body, int workers = 1 << 30) {
    run_parallel(count, call_body<std::remove_reference_t<Body>>, &body, workers);
}

}  // namespace npgpt
