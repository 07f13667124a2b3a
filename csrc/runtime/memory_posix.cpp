#include <sys/mman.h>

#include <cstdlib>

#include "error.h"
#include "memory.h"

namespace npgpt {

void* take_memory(std::size_t bytes) {
    void* block = nullptr;
    if (posix_memalign(&block, 64, bytes)) fail_memory();
    return block;
}

void give_memory(void* block) { std::free(block); }

void* reserve_memory(std::size_t bytes) {
    void* const block = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (block == MAP_FAILED) fail_memory();
    return block;
}

void give_reserved(void* block, std::size_t bytes) { ::munmap(block, bytes); }

static void advise(void*, std::size_t) {}

}  // namespace npgpt

#include "mapping_posix.inl"
