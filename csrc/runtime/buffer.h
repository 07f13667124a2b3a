// Floats on 64-byte boundaries that grow and never shrink; many of them in huge pages, which are read faster.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <new>

namespace npgpt {

class Buffer {
  public:
    Buffer() = default;
    ~Buffer() { std::free(data); }
    Buffer(const Buffer&) = delete;

    // What was in it is lost; throws std::bad_alloc
    float* room(size_t floats) {
        if (floats > size) {
            void* block = nullptr;
            const size_t bytes = floats * sizeof(float), page = bytes < HUGE_PAGE ? 64 : HUGE_PAGE;
            if (floats > size_t(-1) / 8 || posix_memalign(&block, page, bytes)) throw std::bad_alloc();
            if (page == HUGE_PAGE) ::madvise(block, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
            std::free(data);
            data = static_cast<float*>(block);
            size = floats;
        }
        return data;
    }

    float* data = nullptr;

  private:
    static constexpr size_t HUGE_PAGE = 2 << 20;  // bytes of a huge page
    size_t size = 0;
};

}  // namespace npgpt
