// Memory from the heap, and files that are read, not mapped.
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>

#include "error.h"
#include "memory.h"

namespace npgpt {

constexpr std::align_val_t BOUNDARY{64};

void* take_memory(std::size_t bytes) {
    void* const block = ::operator new(bytes, BOUNDARY, std::nothrow);
    if (!block) fail_memory();
    return block;
}

void give_memory(void* block) {
    if (block) ::operator delete(block, BOUNDARY);
}

void* reserve_memory(std::size_t bytes) { return std::memset(take_memory(bytes), 0, bytes); }

void give_reserved(void* block, std::size_t) { give_memory(block); }

Mapping::Mapping(const char* path) {
    std::FILE* const file = std::fopen(path, "rb");
    if (!file) fail(NPGPT_BAD_FILE, "%s: %s", path, std::strerror(errno));
    // A folder opens too, and says that it has no end: only what has a first byte is a file.
    bool reads = std::fgetc(file) != EOF && std::fseek(file, 0, SEEK_END) == 0;
    const long end = reads ? std::ftell(file) : -1;
    reads = end > 0 && std::fseek(file, 0, SEEK_SET) == 0;
    size = std::size_t(end);
    void* const block = reads ? ::operator new(size, BOUNDARY, std::nothrow) : nullptr;
    const bool whole = block && std::fread(block, 1, size, file) == size;
    std::fclose(file);  // before anything fails
    if (reads && !block) fail_memory();
    if (!whole) {
        give_memory(block);
        fail(NPGPT_BAD_FILE, "%s: cannot be read", path);
    }
    data = static_cast<const uint8_t*>(block);
}

Mapping::~Mapping() { give_memory(const_cast<uint8_t*>(data)); }

}  // namespace npgpt
