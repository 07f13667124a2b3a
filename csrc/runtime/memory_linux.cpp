#include "memory.h"

#include <sys/mman.h>

#include <cstdlib>

#include "error.h"

namespace npgpt {

void* take_memory(std::size_t bytes) {
    constexpr std::size_t HUGE_PAGE = 2 << 20;
    void* block = nullptr;
    const std::size_t page = bytes < HUGE_PAGE ? 64 : HUGE_PAGE;
    if (posix_memalign(&block, page, bytes)) fail_memory();
    if (page == HUGE_PAGE) ::madvise(block, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
    return block;
}

void give_memory(void* block) { std::free(block); }

void* reserve_memory(std::size_t bytes) {
    void* const block =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == MAP_FAILED) fail_memory();
    return block;
}

void give_reserved(void* block, std::size_t bytes) { ::munmap(block, bytes); }

static void advise(void* mapped, std::size_t bytes) {
    // Huge pages, where the system keeps files in such: by MADV_WILLNEED it would read small ones.
    if (::madvise(mapped, bytes, MADV_HUGEPAGE) != 0) ::madvise(mapped, bytes, MADV_WILLNEED);
}

}  // namespace npgpt

#include "mapping_posix.inl"
