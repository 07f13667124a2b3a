#include "blocks.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <vector>

namespace npgpt {
namespace {

constexpr std::size_t HUGE_PAGE = std::size_t(2) << 20;

// Blocks in use and kept together stay within SLACK, or a quarter, above the most that was ever in use at once: what one
// shape of batch left behind makes room for the next.
constexpr std::size_t SLACK = std::size_t(32) << 20;
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

// Large blocks are mapped, not allocated: the heap would keep what free() gives it, and mix it with small blocks.
float* allocate(std::size_t bytes) {
    void* block = nullptr;
    if (bytes < HUGE_PAGE) {
        if (posix_memalign(&block, 64, bytes) != 0) throw std::bad_alloc();
        return static_cast<float*>(block);
    }
    const std::size_t room = bytes + HUGE_PAGE;  // enough to begin at a huge page; the rest goes back
    block = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) throw std::bad_alloc();
    char* const first = static_cast<char*>(block);
    const std::size_t before = -reinterpret_cast<std::uintptr_t>(first) % HUGE_PAGE;
    if (before) munmap(first, before);
    munmap(first + before + bytes, room - before - bytes);
    madvise(first + before, bytes, MADV_HUGEPAGE);
    return reinterpret_cast<float*>(first + before);
}

void release(float* block, std::size_t bytes) {
    if (bytes < HUGE_PAGE)
        free(block);
    else
        munmap(block, bytes);
}

void free_largest() {
    auto last = std::prev(kept.end());
    release(last->second.back(), last->first);
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
        while (bytes_kept && bytes_used + bytes_kept + bytes > most_used + std::min(most_used / 4, SLACK))
            free_largest();
        block = allocate(bytes);
    }
    bytes_used += bytes;
    if (bytes_used > most_used) most_used = bytes_used;
    return block;
}

void give_block(float* block, std::size_t floats) {
    const std::size_t bytes = bytes_of(floats);
    std::lock_guard<std::mutex> lock(mutex);
    bytes_used -= bytes;
    try {
        kept[bytes].push_back(block);
        bytes_kept += bytes;
    } catch (const std::bad_alloc&) {  // no memory to note it in: this is called where nothing may be thrown
        const auto list = kept.find(bytes);
        if (list != kept.end() && list->second.empty()) kept.erase(list);
        release(block, bytes);
    }
}

void release_blocks() {
    std::lock_guard<std::mutex> lock(mutex);
    while (bytes_kept) free_largest();
    most_used = bytes_used;
}

}  // namespace npgpt
