// A file that takes the place of another in one go: whatever fails, the old one or the new one is there, whole.
// What differs by system stands in files_linux.cpp, files_posix.cpp, files_windows.cpp and files_none.cpp.
#pragma once
#include <cstddef>
#include <cstdio>
#include <string>

namespace npgpt {

class NewFile {
  public:
    explicit NewFile(const char* path);  // opens PATH.new; throws Error, as all of these
    ~NewFile();                          // removes it, unless keep() has named it
    NewFile(const NewFile&) = delete;
    NewFile& operator=(const NewFile&) = delete;
    void write(const void* data, size_t size);
    void keep();  // it is on the disk under its name, as far as the system can

  private:
    [[noreturn]] void fail_here() const;  // by errno

    const std::string path, temporary;
    std::FILE* file;
};

// Paths are UTF-8. These set errno where they fail.
std::FILE* create_file(const char* path);
bool flush_to_disk(std::FILE* file);
bool replace_file(const std::string& from, const std::string& to);
void remove_file(const std::string& path);

}  // namespace npgpt
