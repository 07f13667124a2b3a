// Memory for arrays: blocks on 64-byte boundaries, large ones advised to use huge pages, kept for reuse when freed.
// A training step asks for the same sizes again and again: from its second round on it allocates nothing, and no page
// is faulted in twice.
#pragma once
#include <cstddef>

namespace npgpt {

float* take_block(std::size_t floats);             // uninitialised; throws std::bad_alloc
void give_block(float* block, std::size_t floats);  // floats: as it was taken
void release_blocks();                             // hands everything kept back to the system

// A block for the length of a scope.
class Block {
  public:
    explicit Block(std::size_t floats) : data(take_block(floats)), size(floats) {}
    ~Block() { give_block(data, size); }
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
    float* const data;

  private:
    const std::size_t size;
};

}  // namespace npgpt
