// A whole pass as one job of the pool: its threads walk through the same steps, each a number of items that they share.
//
// A step costs two cache lines that change cores, where a job of its own costs five or six and a lock: that decides the
// speed of models whose step takes a microsecond. No thread waits for one that has begun nothing: a thread that the
// system has put aside finds its items done by the others and follows.
#pragma once
#include <atomic>
#include <cstdint>
#include <vector>

#include "pool.h"

namespace npgpt {

class Team {
  public:
    // Calls body(i, worker) once for each i in [0, count), on any thread of the team, and returns when all are done.
    // Every thread must make the same calls with the same counts; between them it may change only what is its own.
    template <class Body>
    void share(std::ptrdiff_t count, Body&& body) {
        share(count, call_body<std::remove_reference_t<Body>>, &body);
    }

  private:
    struct Lane {
        alignas(128) std::atomic<uint64_t> next{0};  // step << 32 | items taken of this lane's share
        alignas(128) std::atomic<uint64_t> done{0};  // items of all steps that this lane's thread has done
    };

    Team(std::vector<Lane>& lanes, std::atomic<int>& present, int lane)
        : lanes(lanes.data()), present(present), size(int(lanes.size())), lane(lane) {
        present.fetch_add(1, std::memory_order_relaxed);
    }

    void share(std::ptrdiff_t count, Item item, void* context);
    void take(int from, std::ptrdiff_t count, Item item, void* context);
    uint64_t done() const;

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
