// A whole pass as one job of the pool: its threads walk through the same steps, each a number of items that they share.
//
// A step costs two cache lines that change cores, where a job of its own costs five or six and a lock: that decides the
// speed of models whose step takes a microsecond. No thread waits for one that has begun nothing: a thread that the
// system has put aside finds its items done by the others and follows.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "pool.h"

namespace npgpt {

class Team {
  public:
    // Calls body(i, worker) once for each i in [0, count), on any thread of the team, and returns when all are done.
    // Every thread must make the same calls with the same counts; between them it may change only what is its own.
    template <class Body>
    void share(std::ptrdiff_t count, Body&& body) {
        step++;
        ended += uint64_t(count);
        take(lane, count, body);
        const int help = present.load(std::memory_order_relaxed) == 1 ? 0 : HELP;
        for (int i = 0; done() < ended; i++) {
            if (i == help)
                for (int other = 1; other < size; other++) take((lane + other) % size, count, body);
            else if (i < SLEEP)
                pause_cpu();
            else  // another program has the core of a thread that is in an item
                std::this_thread::sleep_for(std::chrono::microseconds(50));
        }
    }

  private:
    static constexpr int HELP = 16, SLEEP = 4000;  // pauses

    struct Lane {
        alignas(128) std::atomic<uint64_t> next{0};  // step << 32 | items taken of this lane's share
        alignas(128) std::atomic<uint64_t> done{0};  // items of all steps that this lane's thread has done
    };

    Team(std::vector<Lane>& lanes, std::atomic<int>& present, int lane)
        : lanes(lanes.data()), present(present), size(int(lanes.size())), lane(lane) {
        present.fetch_add(1, std::memory_order_relaxed);
    }

    template <class Body>
    void take(int from, std::ptrdiff_t count, Body& body) {
        std::atomic<uint64_t>& next = lanes[from].next;
        const std::ptrdiff_t begin = (count * from + size - 1) / size, end = (count * (from + 1) + size - 1) / size;
        const uint64_t first = step << 32;
        uint64_t now = next.load(std::memory_order_relaxed), taken = 0;
        for (;;) {
            const uint64_t at = std::max(now, first);
            if (at - first >= uint64_t(end - begin)) break;  // all taken, or the step is over
            if (!next.compare_exchange_weak(now, at + 1, std::memory_order_relaxed)) continue;
            body(begin + std::ptrdiff_t(at - first), lane);
            now = at + 1, taken++;
        }
        std::atomic<uint64_t>& done = lanes[lane].done;
        if (taken) done.store(done.load(std::memory_order_relaxed) + taken, std::memory_order_release);
    }

    uint64_t done() const {
        uint64_t sum = 0;
        for (int i = 0; i < size; i++) sum += lanes[i].done.load(std::memory_order_acquire);
        return sum;
    }

    Lane* const lanes;
    std::atomic<int>& present;  // threads that have begun
    const int size, lane;
    uint64_t step = 0, ended = 0;  // items of all steps so far

    template <class Walk>
    friend void walk_together(int workers, Walk&& walk);
};

// Calls walk(team) on up to `workers` threads. walk must not throw.
template <class Walk>
void walk_together(int workers, Walk&& walk) {
    std::vector<Team::Lane> lanes(static_cast<size_t>(workers));
    std::atomic<int> present{0};
    parallel_for(
        workers,
        [&](std::ptrdiff_t, int worker) {
            Team team(lanes, present, worker);
            walk(team);
        },
        workers);
}

}  // namespace npgpt
