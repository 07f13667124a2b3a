#include "memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

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

Mapping::Mapping(const char* path) {
    const int file = ::open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe must not make us wait
    if (file < 0) fail(NPGPT_BAD_FILE, "%s: %s", path, std::strerror(errno));
    struct stat about;
    void* mapped = MAP_FAILED;
    if (::fstat(file, &about) != 0 || !S_ISREG(about.st_mode) || about.st_size <= 0)
        errno = EINVAL;
    else
        mapped = ::mmap(nullptr, size_t(about.st_size), PROT_READ, MAP_PRIVATE, file, 0);
    const int error = errno;
    ::close(file);
    if (mapped == MAP_FAILED) fail(NPGPT_BAD_FILE, "%s: cannot be mapped: %s", path, std::strerror(error));
    data = static_cast<const uint8_t*>(mapped);
    size = size_t(about.st_size);
    // Huge pages, where the system keeps files in such: by MADV_WILLNEED it would read small ones.
    if (::madvise(mapped, size, MADV_HUGEPAGE) != 0) ::madvise(mapped, size, MADV_WILLNEED);
}

Mapping::~Mapping() { ::munmap(const_cast<uint8_t*>(data), size); }

}  // namespace npgpt
