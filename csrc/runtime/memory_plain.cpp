// Memory from the heap, and files that are read, not mapped.
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>

#include "error.h"
#include "memory.h"

namespace npgpt {

constexpr std::align_val_t BOUNDARY{64};

void* take_memory(std::size_t bytes) { return ::operator new(bytes, BOUNDARY); }

void give_memory(void* block) {
    if (block) ::operator delete(block, BOUNDARY);
}

void* reserve_memory(std::size_t bytes) { return std::memset(take_memory(bytes), 0, bytes); }

void give_reserved(void* block, std::size_t) { give_memory(block); }

Mapping::Mapping(const char* path) {
    const auto close = [](std::FILE* file) { std::fclose(file); };
    const std::unique_ptr<std::FILE, decltype(close)> file(std::fopen(path, "rb"), close);
    if (!file) fail(NPGPT_BAD_FILE, "%s: %s", path, std::strerror(errno));
    // A folder opens too, and says that it has no end: only what has a first byte is a file.
    const bool reads = std::fgetc(file.get()) != EOF && std::fseek(file.get(), 0, SEEK_END) == 0;
    const long end = reads ? std::ftell(file.get()) : -1;
    if (end <= 0 || std::fseek(file.get(), 0, SEEK_SET)) fail(NPGPT_BAD_FILE, "%s: cannot be read", path);
    size = std::size_t(end);
    void* const block = take_memory(size);
    if (std::fread(block, 1, size, file.get()) != size) {
        give_memory(block);
        fail(NPGPT_BAD_FILE, "%s: cannot be read", path);
    }
    data = static_cast<const uint8_t*>(block);
}

Mapping::~Mapping() { give_memory(const_cast<uint8_t*>(data)); }

}  // namespace npgpt
