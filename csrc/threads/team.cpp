#include "team.h"

#include <algorithm>

namespace npgpt {

constexpr int HELP = 16, SLEEP = 4000;  // pauses

void Team::share(std::ptrdiff_t count, Item item, void* context) {
    step++;
    ended += uint64_t(count);
    take(lane, count, item, context);
    const int help = present.load(std::memory_order_relaxed) == 1 ? 0 : HELP;
    for (int i = 0; done() < ended; i++) {
        if (i == help)
            for (int other = 1; other < size; other++) take((lane + other) % size, count, item, context);
        else if (i < SLEEP)
            pause_cpu();
        else  // another program has the core of a thread that is in an item
            sleep_briefly();
    }
}

void Team::take(int from, std::ptrdiff_t count, Item item, void* context) {
    std::atomic<uint64_t>& next = lanes[from].next;
    const std::ptrdiff_t begin = (count * from + size - 1) / size, end = (count * (from + 1) + size - 1) / size;
    const uint64_t first = step << 32;
    uint64_t now = next.load(std::memory_order_relaxed), taken = 0;
    for (;;) {
        const uint64_t at = std::max(now, first);
        if (at - first >= uint64_t(end - begin)) break;  // all taken, or the step is over
        if (!next.compare_exchange_weak(now, at + 1, std::memory_order_relaxed)) continue;
        item(context, begin + std::ptrdiff_t(at - first), lane);
        now = at + 1, taken++;
    }
    std::atomic<uint64_t>& done = lanes[lane].done;
    if (taken) done.store(done.load(std::memory_order_relaxed) + taken, std::memory_order_release);
}

uint64_t Team::done() const {
    uint64_t sum = 0;
    for (int i = 0; i < size; i++) sum += lanes[i].done.load(std::memory_order_acquire);
    return sum;
}

}  // namespace npgpt
