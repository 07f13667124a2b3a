#ifndef NOMINMAX
#define NOMINMAX
#endif
#define WIN32_LEAN_AND_MEAN
#include <malloc.h>
#include <windows.h>

#include <cwchar>

#include "error.h"
#include "memory.h"

namespace npgpt {

void* take_memory(std::size_t bytes) {
    void* const block = _aligned_malloc(bytes, 64);
    if (!block) fail_memory();
    return block;
}

void give_memory(void* block) { _aligned_free(block); }

void* reserve_memory(std::size_t bytes) {
    void* const block = VirtualAlloc(nullptr, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
    if (!block) fail_memory();
    return block;
}

void give_reserved(void* block, std::size_t) { VirtualFree(block, 0, MEM_RELEASE); }

namespace {

[[noreturn]] void fail_file(const char* path, DWORD error) {
    wchar_t wide[200] = L"";
    char text[600] = "";
    FormatMessageW(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS, nullptr, error, 0, wide, 200, nullptr);
    for (wchar_t* end = wide + std::wcslen(wide); end > wide && (end[-1] <= L' ' || end[-1] == L'.');) *--end = 0;
    WideCharToMultiByte(CP_UTF8, 0, wide, -1, text, sizeof(text), nullptr, nullptr);
    fail(NPGPT_BAD_FILE, "%s: %s (error %lu)", path, text, (unsigned long)error);
}

}  // namespace

// The path is UTF-8, as all text of npgpt.h.
Mapping::Mapping(const char* path) {
    wchar_t wide[4096];
    if (!MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide, 4096)) fail_file(path, GetLastError());
    const HANDLE file = CreateFileW(wide, GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE, nullptr, OPEN_EXISTING,
                                    FILE_ATTRIBUTE_NORMAL, nullptr);
    if (file == INVALID_HANDLE_VALUE) fail_file(path, GetLastError());
    LARGE_INTEGER bytes = {};
    HANDLE mapping = nullptr;
    const void* view = nullptr;
    if (GetFileSizeEx(file, &bytes) && GetFileType(file) == FILE_TYPE_DISK)
        mapping = CreateFileMappingW(file, nullptr, PAGE_READONLY, 0, 0, nullptr);
    if (mapping) view = MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0);
    const DWORD error = GetLastError();
    if (mapping) CloseHandle(mapping);
    CloseHandle(file);
    if (!view) fail_file(path, error);
    data = static_cast<const uint8_t*>(view);
    size = std::size_t(bytes.QuadPart);
}

Mapping::~Mapping() { UnmapViewOfFile(data); }

}  // namespace npgpt
