#ifndef NOMINMAX
#define NOMINMAX
#endif
#define WIN32_LEAN_AND_MEAN
#include <io.h>
#include <windows.h>

#include <cerrno>

#include "files.h"

namespace npgpt {
namespace {

std::wstring wide(const std::string& path) {
    wchar_t text[4096] = L"";
    MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path.c_str(), -1, text, 4096);
    return text;
}

}  // namespace

std::FILE* create_file(const char* path) { return _wfopen(wide(path).c_str(), L"wb"); }

bool flush_to_disk(std::FILE* file) { return !std::fflush(file) && !_commit(_fileno(file)); }

bool replace_file(const std::string& from, const std::string& to) {
    if (MoveFileExW(wide(from).c_str(), wide(to).c_str(), MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH))
        return true;
    errno = EACCES;
    return false;
}

void remove_file(const std::string& path) { _wremove(wide(path).c_str()); }

}  // namespace npgpt
