#include "blocks.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <vector>

namespace npgpt {
namespace {

constexpr std::size_t HUGE_PAGE = std::size_t(2) << 20;

// Blocks in use and kept together stay within a quarter above the most that was ever in use at once: what one shape of
// batch left behind makes room for the next.
std::mutex mutex;
std::map<std::size_t, std::vector<float*>> kept;  // bytes -> free blocks of that size
std::size_t bytes_used = 0, bytes_kept = 0, most_used = 0;

// A fork in the middle of a take must not leave the child a lock that nobody will open.
[[maybe_unused]] const int fork_handlers =
    pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); }, [] { mutex.unlock(); });

std::size_t bytes_of(std::size_t floats) {
    const std::size_t unit = floats * sizeof(float) >= HUGE_PAGE ? 65536 : 64;
    return (floats * sizeof(float) + unit - 1) / unit * unit + unit * (floats == 0);
}

float* allocate(std::size_t bytes) {
    void* block = nullptr;
    if (posix_memalign(&block, bytes >= HUGE_PAGE ? HUGE_PAGE : 64, bytes) != 0) throw std::bad_alloc();
    if (bytes >= HUGE_PAGE) madvise(block, bytes, MADV_HUGEPAGE);
    return static_cast<float*>(block);
}

void free_largest() {
    auto last = std::prev(kept.end());
    free(last->second.back());
    bytes_kept -= last->first;
    last->second.pop_back();
    if (last->second.empty()) kept.erase(last);
}

}  // namespace

float* take_block(std::size_t floats) {
    if (floats > std::size_t(-1) / 2 / sizeof(float)) throw std::bad_alloc();
    const std::size_t bytes = bytes_of(floats);
    std::lock_guard<std::mutex> lock(mutex);
    float* block = nullptr;
    auto found = kept.find(bytes);
    if (found != kept.end()) {
        block = found->second.back();  // the one freed last is the one still in cache
        found->second.pop_back();
        if (found->second.empty()) kept.erase(found);
        bytes_kept -= bytes;
    } else {
        while (bytes_kept && bytes_used + bytes_kept + bytes > most_used + most_used / 4) free_largest();
        block = allocate(bytes);
    }
    bytes_used += bytes;
    if (bytes_used > most_used) most_used = bytes_used;
    return block;
}

void give_block(float* block, std::size_t floats) {
    const std::size_t bytes = bytes_of(floats);
    std::lock_guard<std::mutex> lock(mutex);
    kept[bytes].push_back(block);
    bytes_used -= bytes;
    bytes_kept += bytes;
}

void release_blocks() {
    std::lock_guard<std::mutex> lock(mutex);
    while (bytes_kept) free_largest();
    most_used = bytes_used;
}

}  // namespace npgpt
