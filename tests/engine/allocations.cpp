// Loaded before all else (LD_PRELOAD), it makes allocations of npgpt's compiled parts fail, and of nobody else's.
// test_allocations.py builds it. glibc's own malloc stands behind the one here.
#include <link.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
}

namespace {

struct Range {
    uintptr_t begin, end;
} ranges[16];
int count = 0;
std::atomic<long> made{0}, failed{0};
long fail_first = -1, fail_last = -1;

int add_range(dl_phdr_info* info, size_t, void*) {
    const char* name = info->dlpi_name;
    // strings and exceptions of ours are allocated inside of libstdc++
    if (!std::strstr(name, "libnpgpt.so") && !std::strstr(name, "_kernels.") && !std::strstr(name, "libstdc++"))
        return 0;
    for (int i = 0; i < info->dlpi_phnum && count < 16; i++)
        if (info->dlpi_phdr[i].p_type == PT_LOAD) {
            const uintptr_t at = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
            ranges[count++] = {at, at + info->dlpi_phdr[i].p_memsz};
        }
    return 0;
}

bool fails(void* caller) {
    if (fail_first < 0) return false;
    const uintptr_t at = reinterpret_cast<uintptr_t>(caller);
    bool ours = false;
    for (int i = 0; i < count; i++) ours = ours || (ranges[i].begin <= at && at < ranges[i].end);
    if (!ours) return false;
    const long number = made++;
    if (number < fail_first || number > fail_last) return false;
    failed++;
    errno = ENOMEM;
    return true;
}

void* made_new(size_t size, size_t boundary, void* caller) {
    void* const block = fails(caller)   ? nullptr
                        : boundary > 16 ? __libc_memalign(boundary, size)
                                        : __libc_malloc(size ? size : 1);
    if (!block) throw std::bad_alloc();
    return block;
}

}  // namespace

#define CALLER __builtin_return_address(0)

extern "C" {
// From now on the allocations first..last fail, counted from 0; none if first < 0. Returns how many failed since the last call.
long fail_allocations(long first, long last) {
    if (!count) dl_iterate_phdr(add_range, nullptr);
    fail_first = first, fail_last = last, made = 0;
    return failed.exchange(0);
}
void* malloc(size_t size) { return fails(CALLER) ? nullptr : __libc_malloc(size); }
void* calloc(size_t n, size_t size) { return fails(CALLER) ? nullptr : __libc_calloc(n, size); }
void* realloc(void* block, size_t size) { return fails(CALLER) ? nullptr : __libc_realloc(block, size); }
void* aligned_alloc(size_t boundary, size_t size) { return fails(CALLER) ? nullptr : __libc_memalign(boundary, size); }
int posix_memalign(void** block, size_t boundary, size_t size) {
    if (fails(CALLER)) return ENOMEM;
    return (*block = __libc_memalign(boundary, size)) ? 0 : ENOMEM;
}
void* mmap(void* at, size_t size, int protection, int flags, int file, off_t offset) {
    if (fails(CALLER)) return MAP_FAILED;
    return reinterpret_cast<void*>(syscall(SYS_mmap, at, size, protection, flags, file, offset));
}
}
void* operator new(size_t size) { return made_new(size, 0, CALLER); }
void* operator new[](size_t size) { return made_new(size, 0, CALLER); }
void* operator new(size_t size, std::align_val_t boundary) { return made_new(size, size_t(boundary), CALLER); }
void* operator new[](size_t size, std::align_val_t boundary) { return made_new(size, size_t(boundary), CALLER); }
void operator delete(void* block) noexcept { std::free(block); }
void operator delete[](void* block) noexcept { std::free(block); }
void operator delete(void* block, size_t) noexcept { std::free(block); }
void operator delete[](void* block, size_t) noexcept { std::free(block); }
void operator delete(void* block, std::align_val_t) noexcept { std::free(block); }
void operator delete(void* block, size_t, std::align_val_t) noexcept { std::free(block); }
