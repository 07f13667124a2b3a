// What of memory and files differs by system: memory_linux.cpp, memory_posix.cpp, memory_windows.cpp, and memory_none.cpp
// for where C++ alone is known.
#pragma once
#include <cstddef>
#include <cstdint>

namespace npgpt {

// On 64-byte boundaries, not initialised; much of it in huge pages, which are read faster. Throws Error.
void* take_memory(std::size_t bytes);
void give_memory(void* block);

// Zeros that take memory only where they are written, if the system can. Throws Error.
void* reserve_memory(std::size_t bytes);
void give_reserved(void* block, std::size_t bytes);

class Mapping {  // a file in memory, on 32-byte boundaries
  public:
    explicit Mapping(const char* path);  // throws Error
    ~Mapping();
    Mapping(const Mapping&) = delete;
    const uint8_t* data;
    std::size_t size;
};

}  // namespace npgpt
