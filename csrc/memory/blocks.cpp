#include "blocks.h"

#include <sys/mman.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <vector>

namespace npgpt {
namespace {

constexpr std::size_t HUGE_PAGE = std::size_t(2) << 20;
constexpr std::size_t KEEP_SIZES = 64;  // distinct sizes kept: a stream of odd sizes must not hoard memory

std::mutex mutex;
std::map<std::size_t, std::vector<float*>> kept;  // bytes -> free blocks of that size

std::size_t bytes_of(std::size_t floats) {
    const std::size_t unit = floats * sizeof(float) >= HUGE_PAGE ? 65536 : 64;
    return (floats * sizeof(float) + unit - 1) / unit * unit + unit * (floats == 0);
}

float* allocate(std::size_t bytes) {
    const std::size_t alignment = bytes >= HUGE_PAGE ? HUGE_PAGE : 64;
    void* block = nullptr;
    if (posix_memalign(&block, alignment, bytes) != 0) throw std::bad_alloc();
    if (bytes >= HUGE_PAGE) madvise(block, bytes, MADV_HUGEPAGE);
    return static_cast<float*>(block);
}

}  // namespace

float* take_block(std::size_t floats) {
    const std::size_t bytes = bytes_of(floats);
    if (bytes < floats) throw std::bad_alloc();  // the size overflowed
    {
        std::lock_guard<std::mutex> lock(mutex);
        auto found = kept.find(bytes);
        if (found != kept.end() && !found->second.empty()) {
            float* block = found->second.back();  // the one freed last is the one still in cache
            found->second.pop_back();
            return block;
        }
    }
    return allocate(bytes);
}

void give_block(float* block, std::size_t floats) {
    const std::size_t bytes = bytes_of(floats);
    {
        std::lock_guard<std::mutex> lock(mutex);
        if (kept.count(bytes) || kept.size() < KEEP_SIZES) {
            kept[bytes].push_back(block);
            return;
        }
    }
    free(block);
}

void release_blocks() {
    std::lock_guard<std::mutex> lock(mutex);
    for (auto& size : kept)
        for (float* block : size.second) free(block);
    kept.clear();
}

}  // namespace npgpt
