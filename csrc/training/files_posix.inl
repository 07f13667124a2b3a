// Files on Linux and other POSIX systems: synced, and so is the folder that names them.
#include <fcntl.h>
#include <unistd.h>

#include "files.h"

namespace npgpt {

std::FILE* create_file(const char* path) { return std::fopen(path, "wb"); }

bool flush_to_disk(std::FILE* file) { return !std::fflush(file) && !::fsync(::fileno(file)); }

bool replace_file(const std::string& from, const std::string& to) {
    if (std::rename(from.c_str(), to.c_str())) return false;
    const size_t slash = to.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : to.substr(0, slash + 1);
    const int opened = ::open(folder.c_str(), O_RDONLY);
    if (opened < 0) return true;  // a folder that may be written, and not read
    (void)::fsync(opened);        // not every file system can
    ::close(opened);
    return true;
}

void remove_file(const std::string& path) { ::unlink(path.c_str()); }

}  // namespace npgpt
