// A GGUF file, checked: whatever its bytes are, what this class gives out lies inside of it.
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include "../kernels/kernels.h"

namespace npgpt {

class Gguf {
  public:
    Gguf(const uint8_t* data, size_t size);  // throws Error

    // Values by key. Without a default a missing key is an error, as is a value of another kind.
    std::string_view text(const char* key) const;
    uint64_t integer(const char* key, uint64_t least, uint64_t most) const;
    uint64_t integer(const char* key, uint64_t least, uint64_t most, uint64_t missing) const;
    double number(const char* key) const;
    double number(const char* key, double missing) const;
    bool flag(const char* key, bool missing) const;
    bool has(const char* key) const { return find(key) != nullptr; }
    std::vector<std::string_view> texts(const char* key) const;  // an array of strings
    std::vector<int32_t> integers(const char* key) const;        // an array of 32-bit integers; empty if missing
    std::vector<float> numbers(const char* key) const;           // an array of float32
    std::vector<std::string_view> keys(std::string_view prefix) const;  // that begin so, without it

    struct Tensor {
        std::string_view name;
        const uint8_t* data;
        WeightType type;
        int dimensions;
        uint64_t columns, rows;  // rows 1 for a vector
        mutable bool used = false;
    };
    std::vector<Tensor> tensors;  // by their names
    const Tensor* find_tensor(std::string_view name) const;  // null if there is none

  private:
    enum Type : uint32_t { U8, I8, U16, I16, U32, I32, F32_, BOOL, STRING, ARRAY, U64, I64, F64 };
    struct Value {
        std::string_view name;
        Type type, element;       // element: of an array
        uint64_t count;           // of an array
        const uint8_t* data;
    };
    struct Reader;
    const Value* find(const char* key) const;
    const Value& need(const char* key) const;
    static uint64_t size_of(Type type);

    std::vector<Value> values;
};

}  // namespace npgpt
