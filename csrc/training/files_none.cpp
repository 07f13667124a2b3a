// Files as C alone knows them: where a name that is taken cannot be given again, the old file goes first.
#include "files.h"

namespace npgpt {

std::FILE* create_file(const char* path) { return std::fopen(path, "wb"); }

bool flush_to_disk(std::FILE* file) { return !std::fflush(file); }

bool replace_file(const std::string& from, const std::string& to) {
    if (!std::rename(from.c_str(), to.c_str())) return true;
    std::remove(to.c_str());
    return !std::rename(from.c_str(), to.c_str());
}

void remove_file(const std::string& path) { std::remove(path.c_str()); }

}  // namespace npgpt
