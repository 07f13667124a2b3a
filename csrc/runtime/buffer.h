// Floats on 64-byte boundaries that grow and never shrink; many of them in huge pages, which are read faster.
#pragma once
#include <cstddef>

#include "error.h"
#include "memory.h"

namespace npgpt {

class Buffer {
  public:
    Buffer() = default;
    ~Buffer() { give_memory(data); }
    Buffer(const Buffer&) = delete;

    // What was in it is lost; fails where memory does
    float* room(size_t floats) {
        if (floats > size) {
            if (floats > size_t(-1) / 8) fail_memory();
            void* const block = take_memory(floats * sizeof(float));
            give_memory(data);
            data = static_cast<float*>(block);
            size = floats;
        }
        return data;
    }

    float* data = nullptr;

  private:
    size_t size = 0;
};

}  // namespace npgpt
