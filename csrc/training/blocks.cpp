// The block store of memory/blocks.h for the one source, on any system: what is given back is kept for the next step, which
// asks for the same sizes again.
#include "../memory/blocks.h"

#include <map>
#include <new>
#include <vector>

#include "../runtime/memory.h"
#include "../threads/lock.h"

namespace npgpt {
namespace {

Lock lock;
std::map<std::size_t, std::vector<float*>> kept;  // floats -> free blocks of that size

}  // namespace

float* take_block(std::size_t floats) {
    {
        Lock::Held held(lock);
        const auto found = kept.find(floats);
        if (found != kept.end() && !found->second.empty()) {
            float* const block = found->second.back();  // the one freed last is the one still in cache
            found->second.pop_back();
            return block;
        }
    }
    if (floats > std::size_t(-1) / 2 / sizeof(float)) throw std::bad_alloc();
    return static_cast<float*>(take_memory(floats * sizeof(float) + 64));
}

void give_block(float* block, std::size_t floats) {
    try {
        Lock::Held held(lock);
        kept[floats].push_back(block);
    } catch (const std::bad_alloc&) {  // no memory to note it in
        give_memory(block);
    }
}

void release_blocks() {
    Lock::Held held(lock);
    for (auto& [floats, blocks] : kept)
        for (float* block : blocks) give_memory(block);
    kept.clear();
}

}  // namespace npgpt
