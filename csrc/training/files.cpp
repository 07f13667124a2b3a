#include "files.h"

#include <cerrno>
#include <cstring>

#include "../runtime/error.h"

namespace npgpt {

NewFile::NewFile(const char* path_) : path(path_), temporary(path + ".new"), file(create_file(temporary.c_str())) {
    if (!file) fail_here();
}

NewFile::~NewFile() {
    if (!file) return;
    std::fclose(file);
    remove_file(temporary);
}

void NewFile::write(const void* data, size_t size) {
    if (std::fwrite(data, 1, size, file) != size) fail_here();
}

void NewFile::keep() {
    if (!flush_to_disk(file)) fail_here();
    const int failed = std::fclose(file);
    file = nullptr;
    if (!failed && replace_file(temporary, path)) return;
    const int error = errno;
    remove_file(temporary);
    errno = error;
    fail_here();
}

void NewFile::fail_here() const {
    if (errno == ENOMEM) fail_memory();
    fail(NPGPT_BAD_FILE, "%s: %s", path.c_str(), std::strerror(errno));
}

}  // namespace npgpt
