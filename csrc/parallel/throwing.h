// A parallel loop whose body may throw, as one does that takes memory.
#pragma once
#include <atomic>
#include <exception>

#include "../threads/pool.h"

namespace npgpt {

// As parallel_for. What a body throws first comes out when no thread is in one any more; items that nobody had begun by then
// are left out.
template <class Body>
void parallel_for_throwing(std::ptrdiff_t count, Body&& body) {
    std::atomic<bool> broken{false};
    std::exception_ptr error;
    parallel_for(count, [&](std::ptrdiff_t i, int worker) {
        if (broken.load(std::memory_order_relaxed)) return;
        try {
            body(i, worker);
        } catch (...) {
            if (!broken.exchange(true)) error = std::current_exception();
        }
    });
    if (error) std::rethrow_exception(error);
}

}  // namespace npgpt
