// A whole pass as one job of the pool: its threads walk through the same steps, each a number of items that they share.
//
// A step costs two cache lines that change cores, where a job of its own costs five or six and a lock: that decides the
// speed of models whose step takes a microsecond. No thread waits for one that has begun nothing: a thread that the
// system has put aside finds its items done by the others and follows.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>

#include "pool.h"

namespace npgpt {

class Lanes;

class Team {
  public:
    // Calls body(i, worker) once for each i in [0, count), on any thread of the team, and returns when all are done.
    // Every thread must make the same calls with the same counts; between them it may change only what is its own.
    template <class Body>
    void share(std::ptrdiff_t count, Body&& body) {
        share(count, call_body<std::remove_reference_t<Body>>, &body);
    }

  private:
    friend class Lanes;
    struct Lane {
        alignas(128) std::atomic<uint64_t> next{0};  // step << 32 | items taken of this lane's share
        alignas(128) std::atomic<uint64_t> done{0};  // items of all steps that this lane's thread has done
    };

    Team(Lane* lanes, int size, std::atomic<int>& present, int lane)
        : lanes(lanes), present(present), size(size), lane(lane) {
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
    friend void walk_together(Lanes& lanes, int workers, Walk&& walk);
};

// What the threads of a team count by: kept from one walk to the next, so that a walk allocates nothing.
class Lanes {
  public:
    void reserve(int workers) {
        if (workers <= room) return;
        lanes = std::make_unique<Team::Lane[]>(static_cast<std::size_t>(workers));
        room = workers;
    }

  private:
    std::unique_ptr<Team::Lane[]> lanes;
    int room = 0;

    template <class Walk>
    friend void walk_together(Lanes& lanes, int workers, Walk&& walk);
};

// Calls walk(team) on up to `workers` threads. walk must not throw.
template <class Walk>
void walk_together(Lanes& kept, int workers, Walk&& walk) {
    kept.reserve(workers);
    Team::Lane* const lanes = kept.lanes.get();
    for (int i = 0; i < workers; i++) {
        lanes[i].next.store(0, std::memory_order_relaxed);
        lanes[i].done.store(0, std::memory_order_relaxed);
    }
    std::atomic<int> present{0};
    parallel_for(
        workers,
        [&](std::ptrdiff_t, int worker) {
            Team team(lanes, workers, present, worker);
            walk(team);
        },
        workers);
}

}  // namespace npgpt
