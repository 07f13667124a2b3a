#include "gguf.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <string>

#include "error.h"

namespace npgpt {

// Takes bytes off the front, never more than there are.
struct Gguf::Reader {
    const uint8_t *begin, *at, *end;

    uint64_t left() const { return uint64_t(end - at); }
    unsigned long long where() const { return (unsigned long long)(at - begin); }
    const uint8_t* take(uint64_t bytes, const char* what) {
        if (bytes > left())
            fail(NPGPT_BAD_FORMAT, "GGUF: %s at byte %llu needs %llu bytes, but %llu are left", what, where(),
                 (unsigned long long)bytes, (unsigned long long)left());
        const uint8_t* taken = at;
        at += bytes;
        return taken;
    }
    template <class T>
    T number(const char* what) {
        T value;
        std::memcpy(&value, take(sizeof(T), what), sizeof(T));
        return value;
    }
    std::string_view string(const char* what) {
        const uint64_t length = number<uint64_t>(what);
        return {reinterpret_cast<const char*>(take(length, what)), size_t(length)};
    }
};

namespace {

template <class T>
T read(const uint8_t* data) {
    T value;
    std::memcpy(&value, data, sizeof(T));
    return value;
}

constexpr WeightType NO = COLUMNS;  // of no file

// ggml's types in the order of their numbers, and what they are to the kernels
constexpr struct {
    const char* name;
    WeightType type;
} TYPES[] = {{"F32", F32},       {"F16", F16},       {"Q4_0", Q4_0},     {"Q4_1", Q4_1},     {"Q4_2", NO},
             {"Q4_3", NO},       {"Q5_0", Q5_0},     {"Q5_1", Q5_1},     {"Q8_0", Q8_0},     {"Q8_1", NO},
             {"Q2_K", Q2_K},     {"Q3_K", Q3_K},     {"Q4_K", Q4_K},     {"Q5_K", Q5_K},     {"Q6_K", Q6_K},
             {"Q8_K", NO},       {"IQ2_XXS", NO},    {"IQ2_XS", NO},     {"IQ3_XXS", NO},    {"IQ1_S", NO},
             {"IQ4_NL", IQ4_NL}, {"IQ3_S", NO},      {"IQ2_S", NO},      {"IQ4_XS", IQ4_XS}, {"I8", NO},
             {"I16", NO},        {"I32", NO},        {"I64", NO},        {"F64", NO},        {"IQ1_M", NO},
             {"BF16", BF16},     {"Q4_0_4_4", NO},   {"Q4_0_4_8", NO},   {"Q4_0_8_8", NO},   {"TQ1_0", NO},
             {"TQ2_0", NO},      {"IQ4_NL_4_4", NO}, {"IQ4_NL_4_8", NO}, {"IQ4_NL_8_8", NO}, {"MXFP4", NO},
             {"NVFP4", NO},      {"Q1_0", NO},       {"Q2_0", NO}};

const char* name_of(WeightType type) {
    return std::find_if(std::begin(TYPES), std::end(TYPES), [&](const auto& of) { return of.type == type; })->name;
}

WeightType type_of(uint32_t number, std::string_view tensor) {
    const bool known = number < std::size(TYPES);
    if (known && TYPES[number].type != NO) return TYPES[number].type;
    std::string read;
    for (const auto& of : TYPES)
        if (of.type != NO) read.append(read.empty() ? "" : ", ").append(of.name);
    fail(NPGPT_UNSUPPORTED, "GGUF: tensor %.*s must be of %s, got %s", shown(tensor), tensor.data(), read.c_str(),
         known ? TYPES[number].name : ("type " + std::to_string(number)).c_str());
}

// Elements of a tensor: where addresses have 32 bits, their bytes are counted by such a number
constexpr bool WIDE_ADDRESSES = sizeof(Index) == 8;
constexpr uint64_t MOST = uint64_t(1) << (WIDE_ADDRESSES ? 48 : 28);
constexpr const char* TOO_MANY =
    WIDE_ADDRESSES ? "a length must be 1 to 2^48 in all" : "a length must be 1 to 2^28 in all";

// Sorts what a file names; nothing may be there twice.
template <class T>
void sort_by_name(std::vector<T>& all, const char* what) {
    std::sort(all.begin(), all.end(), [](const T& a, const T& b) { return a.name < b.name; });
    for (size_t i = 1; i < all.size(); i++)
        if (all[i].name == all[i - 1].name)
            fail(NPGPT_BAD_FORMAT, "GGUF: the %s %.*s is there twice", what, shown(all[i].name), all[i].name.data());
}

template <class T>
const T* find_by_name(const std::vector<T>& all, std::string_view name) {
    const auto at = std::lower_bound(all.begin(), all.end(), name,
                                     [](const T& one, std::string_view name) { return one.name < name; });
    return at != all.end() && at->name == name ? &*at : nullptr;
}

}  // namespace

uint64_t Gguf::size_of(Type type) {
    constexpr uint8_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return sizes[type];
}

Gguf::Gguf(const uint8_t* data, size_t size) {
    Reader in{data, data, data + size};
    if (size < 4 || std::memcmp(in.take(4, "magic"), "GGUF", 4)) fail(NPGPT_BAD_FORMAT, "GGUF: byte 0 must begin GGUF");
    if (__BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__)
        fail(NPGPT_UNSUPPORTED, "GGUF: this machine is big-endian, and npgpt reads files on little-endian ones alone");
    const uint32_t version = in.number<uint32_t>("version");
    if (version == __builtin_bswap32(2) || version == __builtin_bswap32(3))
        fail(NPGPT_UNSUPPORTED, "GGUF: the file is for big-endian machines, and must be little-endian");
    if (version < 2 || version > 3) fail(NPGPT_UNSUPPORTED, "GGUF: version must be 2 or 3, got %u", version);
    const uint64_t n_tensors = in.number<uint64_t>("number of tensors"),
                   n_values = in.number<uint64_t>("number of values");
    // The shortest value takes 13 bytes, the shortest tensor 32: more than fit are none.
    if (n_values > in.left() / 13 || n_tensors > in.left() / 32)
        fail(NPGPT_BAD_FORMAT, "GGUF: %llu values and %llu tensors do not fit a file of %llu bytes",
             (unsigned long long)n_values, (unsigned long long)n_tensors, (unsigned long long)size);

    for (uint64_t i = 0; i < n_values; i++) {
        Value value{};
        const unsigned long long where = in.where();
        value.name = in.string("a key");
        const auto type = [&] {
            const uint32_t number = in.number<uint32_t>("a type");
            if (number > F64)
                fail(NPGPT_BAD_FORMAT, "GGUF: %.*s at byte %llu is of type %u, which is none", shown(value.name),
                     value.name.data(), where, number);
            return Type(number);
        };
        if (value.name.empty()) fail(NPGPT_BAD_FORMAT, "GGUF: the key at byte %llu is empty", where);
        value.type = type();
        if (value.type == STRING) {
            value.data = in.at;
            in.string("a string");
        } else if (value.type == ARRAY) {
            value.element = type();
            value.count = in.number<uint64_t>("the length of an array");
            value.data = in.at;
            if (value.element == ARRAY)
                fail(NPGPT_BAD_FORMAT, "GGUF: %.*s at byte %llu is an array of arrays", shown(value.name),
                     value.name.data(), where);
            if (value.element == STRING) {
                for (uint64_t k = 0; k < value.count; k++) in.string("a string of an array");
            } else {
                const uint64_t each = size_of(value.element);
                if (value.count > in.left() / each)
                    fail(NPGPT_BAD_FORMAT, "GGUF: %.*s at byte %llu has %llu elements, but %llu bytes are left",
                         shown(value.name), value.name.data(), where, (unsigned long long)value.count,
                         (unsigned long long)in.left());
                in.take(value.count * each, "an array");
            }
        } else {
            value.data = in.take(size_of(value.type), "a value");
        }
        values.push_back(value);
    }
    sort_by_name(values, "key");
    const uint64_t alignment = integer("general.alignment", 1, 1 << 20, 32);
    if (alignment & (alignment - 1) || alignment % 8)
        fail(NPGPT_BAD_FORMAT, "GGUF: general.alignment must be a power of two from 8 on, got %llu",
             (unsigned long long)alignment);

    std::vector<uint64_t> offsets;
    for (uint64_t i = 0; i < n_tensors; i++) {
        Tensor tensor{};
        tensor.columns = tensor.rows = 1;
        tensor.name = in.string("a tensor's name");
        const auto refuse = [&](const char* what, unsigned long long got) {
            fail(NPGPT_BAD_FORMAT, "GGUF: tensor %.*s: %s, got %llu", shown(tensor.name), tensor.name.data(), what,
                 got);
        };
        tensor.dimensions = int(std::min<uint32_t>(5, in.number<uint32_t>("a tensor's dimensions")));
        if (tensor.dimensions < 1 || tensor.dimensions > 4) refuse("dimensions must be 1 to 4", tensor.dimensions);
        uint64_t elements = 1;
        for (int d = 0; d < tensor.dimensions; d++) {
            const uint64_t length = in.number<uint64_t>("a tensor's shape");
            if (!length || length > MOST / elements) refuse(TOO_MANY, length);
            elements *= length;
            if (d == 0) tensor.columns = length;
        }
        tensor.rows = elements / tensor.columns;
        tensor.type = type_of(in.number<uint32_t>("a tensor's type"), tensor.name);
        const uint64_t block = uint64_t(block_length(tensor.type));
        if (tensor.columns % block)
            fail(NPGPT_BAD_FORMAT, "GGUF: tensor %.*s: rows of %s must be of a multiple of %llu, got %llu",
                 shown(tensor.name), tensor.name.data(), name_of(tensor.type), (unsigned long long)block,
                 (unsigned long long)tensor.columns);
        offsets.push_back(in.number<uint64_t>("a tensor's place"));
        tensors.push_back(tensor);
    }
    const uint64_t begin = (uint64_t(in.at - data) + alignment - 1) / alignment * alignment;
    for (size_t i = 0; i < tensors.size(); i++) {
        Tensor& tensor = tensors[i];
        const uint64_t bytes = tensor.rows * row_bytes(tensor.type, Index(tensor.columns));
        const uint64_t room = begin > size ? 0 : size - begin;
        if (offsets[i] % alignment || offsets[i] > room || bytes > room - offsets[i])
            fail(NPGPT_BAD_FORMAT,
                 "GGUF: tensor %.*s (%s) needs %llu bytes at %llu of the %llu that follow byte %llu, aligned to %llu",
                 shown(tensor.name), tensor.name.data(), name_of(tensor.type), (unsigned long long)bytes,
                 (unsigned long long)offsets[i], (unsigned long long)room, (unsigned long long)begin,
                 (unsigned long long)alignment);
        tensor.data = data + begin + offsets[i];
    }
    sort_by_name(tensors, "tensor");
}

const Gguf::Value* Gguf::find(const char* key) const { return find_by_name(values, key); }

const Gguf::Tensor* Gguf::find_tensor(std::string_view name) const { return find_by_name(tensors, name); }

const Gguf::Value& Gguf::need(const char* key) const {
    const Value* value = find(key);
    if (!value) fail(NPGPT_BAD_FORMAT, "GGUF: there is no %s", key);
    return *value;
}

std::string_view Gguf::text(const char* key) const {
    const Value& value = need(key);
    if (value.type != STRING) fail(NPGPT_BAD_FORMAT, "GGUF: %s must be a string", key);
    return {reinterpret_cast<const char*>(value.data) + 8, size_t(read<uint64_t>(value.data))};
}

uint64_t Gguf::integer(const char* key, uint64_t least, uint64_t most) const {
    const Value& value = need(key);
    uint64_t number = 0;
    switch (value.type) {
        case U8: number = read<uint8_t>(value.data); break;
        case I8: number = uint64_t(int64_t(read<int8_t>(value.data))); break;
        case U16: number = read<uint16_t>(value.data); break;
        case I16: number = uint64_t(int64_t(read<int16_t>(value.data))); break;
        case U32: number = read<uint32_t>(value.data); break;
        case I32: number = uint64_t(int64_t(read<int32_t>(value.data))); break;
        case U64:
        case I64: number = read<uint64_t>(value.data); break;
        default: fail(NPGPT_BAD_FORMAT, "GGUF: %s must be an integer", key);
    }
    if (number < least || number > most)
        fail(NPGPT_BAD_FORMAT, "GGUF: %s must be in %llu..%llu, got %llu", key, (unsigned long long)least,
             (unsigned long long)most, (unsigned long long)number);
    return number;
}

uint64_t Gguf::integer(const char* key, uint64_t least, uint64_t most, uint64_t missing) const {
    return has(key) ? integer(key, least, most) : missing;
}

double Gguf::number(const char* key) const {
    const Value& value = need(key);
    if (value.type != F32_ && value.type != F64) fail(NPGPT_BAD_FORMAT, "GGUF: %s must be a float", key);
    return value.type == F64 ? read<double>(value.data) : double(read<float>(value.data));
}

double Gguf::number(const char* key, double missing) const { return has(key) ? number(key) : missing; }

bool Gguf::flag(const char* key, bool missing) const {
    const Value* value = find(key);
    if (value && value->type != BOOL) fail(NPGPT_BAD_FORMAT, "GGUF: %s must be true or false", key);
    return value ? read<uint8_t>(value->data) != 0 : missing;
}

std::vector<std::string_view> Gguf::keys(std::string_view prefix) const {
    std::vector<std::string_view> found;
    for (const Value& value : values)
        if (value.name.substr(0, prefix.size()) == prefix) found.push_back(value.name.substr(prefix.size()));
    return found;
}

std::vector<std::string_view> Gguf::texts(const char* key) const {
    const Value& value = need(key);
    if (value.type != ARRAY || value.element != STRING)
        fail(NPGPT_BAD_FORMAT, "GGUF: %s must be an array of strings", key);
    std::vector<std::string_view> found;
    const uint8_t* at = value.data;
    for (uint64_t i = 0; i < value.count; i++) {
        const size_t length = size_t(read<uint64_t>(at));
        found.emplace_back(reinterpret_cast<const char*>(at) + 8, length);
        at += 8 + length;
    }
    return found;
}

std::vector<int32_t> Gguf::integers(const char* key) const {
    const Value* value = find(key);
    if (!value) return {};
    if (value->type != ARRAY || (value->element != I32 && value->element != U32))
        fail(NPGPT_BAD_FORMAT, "GGUF: %s must be an array of 32-bit integers", key);
    std::vector<int32_t> found;
    found.reserve(value->count);  // which the file has been found to hold
    for (uint64_t i = 0; i < value->count; i++) found.push_back(read<int32_t>(value->data + 4 * i));
    return found;
}

std::vector<float> Gguf::numbers(const char* key) const {
    const Value& value = need(key);
    if (value.type != ARRAY || value.element != F32_)
        fail(NPGPT_BAD_FORMAT, "GGUF: %s must be an array of float32", key);
    std::vector<float> found;
    found.reserve(value.count);  // which the file has been found to hold
    for (uint64_t i = 0; i < value.count; i++) found.push_back(read<float>(value.data + 4 * i));
    return found;
}

}  // namespace npgpt
