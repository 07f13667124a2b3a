// Threads that walk through steps together: each item once, after all of the step before, however late a thread comes.
// test_programs.py builds it with the pool, also under ThreadSanitizer. Exit 0 and "all holds", or what does not.
#include "../../csrc/threads/team.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

using namespace npgpt;

static const int COUNTS[] = {1, 2, 3, 0, 7, 64, 1, 1, 5, 31};
constexpr int STEPS = 40, MOST = 64;

static uint64_t mixed(uint64_t x) { return (x ^ x >> 31) * 0x9E3779B97F4A7C15u + 1; }

// Every item is made of all items of the step before: one that is skipped, made twice or too early changes the end.
struct Walk {
    uint64_t value[STEPS + 1][MOST] = {};
    int made[STEPS + 1][MOST] = {};

    void item(int step, int i, int before) {
        uint64_t sum = uint64_t(i);
        for (int j = 0; j < before; j++) sum += mixed(value[step - 1][j]);
        value[step][i] = mixed(sum + uint64_t(step));
        made[step][i]++;
    }

    void by(Team& team, unsigned late) {
        for (int step = 1, before = 0; step <= STEPS; step++) {
            const int count = COUNTS[step % 10];
            team.share(count, [&](std::ptrdiff_t i, int worker) {
                const unsigned chance = unsigned(mixed(late + unsigned(step * 64 + i))) % 64;
                if (late && chance == 0 && worker) std::this_thread::sleep_for(std::chrono::microseconds(300));
                if (late && chance < 8)
                    for (int n = 0; n < 200; n++) pause_cpu();
                item(step, int(i), before);
            });
            before = count;
        }
    }
};

static void need(bool holds, const char* what, int workers, int turn) {
    if (holds) return;
    std::printf("%s: %d workers, turn %d\n", what, workers, turn);
    std::exit(1);
}

static void check(int workers, int turn, unsigned late) {
    auto expected = std::make_unique<Walk>(), walk = std::make_unique<Walk>();
    Lanes lanes;
    walk_together(lanes, 1, [&](Team& team) { expected->by(team, 0); });
    for (int again = 0; again < 2; again++) {  // the second time with what the first has left in its lanes
        *walk = Walk{};
        walk_together(lanes, workers, [&](Team& team) { walk->by(team, late); });
    }
    for (int step = 1; step <= STEPS; step++)
        for (int i = 0; i < COUNTS[step % 10]; i++) {
            need(walk->made[step][i] == 1, "an item was not made once", workers, turn);
            need(walk->value[step][i] == expected->value[step][i], "an item came too early", workers, turn);
        }
}

int main(int, char** argv) {
    const int turns = std::atoi(argv[1]);
    for (int workers : {1, 2, 3, 6}) {
        set_num_threads(workers);
        for (int turn = 0; turn < turns; turn++) check(workers, turn, turn % 2 ? unsigned(turn) : 0);
    }
    // Several callers at a time: one gets the pool, the others walk alone. So does one inside a job.
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 3; caller++)
        callers.emplace_back([=] {
            for (int turn = 0; turn < turns; turn++) check(2 + caller, turn, unsigned(turn + caller));
        });
    for (std::thread& caller : callers) caller.join();
    parallel_for(4, [&](std::ptrdiff_t i, int) { check(3, int(i), 1); });
    std::puts("all holds");
    return 0;
}
