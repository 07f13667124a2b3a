// A file in memory, on Linux and other POSIX systems. Whoever includes this has advise(mapped, bytes), which tells the system
// how the file will be read.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "error.h"
#include "memory.h"

namespace npgpt {

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
    advise(mapped, size);
}

Mapping::~Mapping() { ::munmap(const_cast<uint8_t*>(data), size); }

}  // namespace npgpt
