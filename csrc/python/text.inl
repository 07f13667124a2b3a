// The tokenizer's classes. Part of module.cpp, which includes pybind11: that takes longer to compile than all of this.
#include <memory>

#include "../parallel/encode.h"
#include "../text/spm.h"
#include "../text/suffixes.h"

namespace npgpt {
namespace {

struct Bytes {  // of any object with a buffer; keeps it until it goes
    explicit Bytes(const py::buffer& object) : info(object.request()) {
        if (info.itemsize != 1 || info.ndim != 1 || (info.size && info.strides[0] != 1))
            throw py::type_error("Bpe: text must be contiguous bytes");
        data = static_cast<const uint8_t*>(info.ptr), size = size_t(info.size);
    }
    py::buffer_info info;
    const uint8_t* data;
    size_t size;
};

using Ids = py::array_t<uint32_t, py::array::c_style>;
using Counts = py::array_t<uint64_t, py::array::c_style>;

std::vector<Merge> merges_of(const Ids& table) {  // (n, 3)
    if (table.ndim() != 2 || table.shape(1) != 3) throw py::value_error("Bpe: merges must be of shape (n, 3)");
    std::vector<Merge> merges(size_t(table.shape(0)));
    for (size_t i = 0; i < merges.size(); i++) merges[i] = {*table.data(i, 0), *table.data(i, 1), *table.data(i, 2)};
    return merges;
}

const uint32_t* byte_ids_of(const Ids& table) {
    if (table.ndim() != 1 || table.size() != 256) throw py::value_error("Bpe: byte_ids must be of shape (256,)");
    return table.data();
}

Split split_of(const std::string& name) {
    const std::pair<const char*, Split> known[] = {
        {"gpt-2", Split::GPT2}, {"smollm", Split::SMOLLM}, {"llama-bpe", Split::LLAMA3}, {"qwen2", Split::QWEN2}};
    for (const auto& [of, split] : known)
        if (name == of) return split;
    throw py::value_error("Bpe: split must be gpt-2, smollm, llama-bpe or qwen2, got " + name);
}

template <class T>
py::array joined(const uint32_t* ids, const std::vector<Run>& runs) {
    size_t count = 0;
    for (const Run& run : runs) count += run.count;
    py::array_t<T> array{py::ssize_t(count)};
    T* out = array.mutable_data();
    for (const Run& run : runs)
        for (size_t i = 0; i < run.count; i++) *out++ = T(ids[run.first + i]);
    return array;
}

py::array py_encode(const Bpe& bpe, const py::buffer& text) {
    const Bytes bytes(text);
    const std::unique_ptr<uint32_t[]> ids(new uint32_t[bytes.size]);  // untouched pages cost nothing
    std::vector<Run> runs;
    {
        py::gil_scoped_release free;
        runs = encode_text(bpe, bytes.data, bytes.size, ids.get());
    }
    return bpe.vocab_size() <= 65536 ? joined<uint16_t>(ids.get(), runs) : joined<uint32_t>(ids.get(), runs);
}

py::bytes py_decode(const Bpe& bpe, const Ids& ids) {
    const uint32_t* data = ids.data();
    const size_t n = size_t(ids.size());
    for (size_t i = 0; i < n; i++)
        if (data[i] >= bpe.vocab_size())
            throw py::value_error("decode: id " + std::to_string(data[i]) + " is no token's");
    std::string out;
    {
        py::gil_scoped_release free;
        bpe.decode(data, n, out);
    }
    return out;
}

std::unique_ptr<Spm> make_spm(const std::vector<std::string>& symbols, size_t n_tokens, const Ids& merges,
                              const Ids& byte_ids, uint32_t unknown, bool fuse, bool words) {
    if (merges.ndim() != 2 || merges.shape(1) != 4) throw py::value_error("Spm: merges must be of shape (n, 4)");
    if (byte_ids.ndim() != 1 || byte_ids.size() != 256) throw py::value_error("Spm: byte_ids must be of shape (256,)");
    std::vector<RankedMerge> table(size_t(merges.shape(0)));
    for (size_t i = 0; i < table.size(); i++)
        table[i] = {*merges.data(i, 0), *merges.data(i, 1), *merges.data(i, 2), *merges.data(i, 3)};
    return std::make_unique<Spm>(symbols, n_tokens, table, byte_ids.data(), unknown, fuse, words);
}

py::array py_encode_spm(const Spm& spm, const py::buffer& text, bool prefix) {
    const Bytes bytes(text);
    std::vector<uint32_t> ids;
    {
        py::gil_scoped_release free;
        spm.encode(bytes.data, bytes.size, prefix, ids);
    }
    const std::vector<Run> all = {{0, ids.size()}};
    return spm.vocab_size() <= 65536 ? joined<uint16_t>(ids.data(), all) : joined<uint32_t>(ids.data(), all);
}

Ids py_train(const PieceCounts& counts, const Ids& byte_ids, size_t count, uint64_t min_count) {
    const uint32_t* table = byte_ids_of(byte_ids);
    std::vector<Merge> merges;
    {
        py::gil_scoped_release free;
        merges = train_bpe(counts, table, count, min_count);
    }
    Ids out({merges.size(), size_t(3)});
    uint32_t* at = out.mutable_data();
    for (const Merge& merge : merges) *at++ = merge.left, *at++ = merge.right, *at++ = merge.token;
    return out;
}

py::tuple py_table(const PieceCounts& counts) {
    const size_t n = counts.pieces.size();
    py::array_t<uint8_t> text(counts.bytes.size(), reinterpret_cast<const uint8_t*>(counts.bytes.data()));
    py::array_t<uint64_t> lengths(n), times(n);
    for (size_t i = 0; i < n; i++) {
        lengths.mutable_data()[i] = counts.pieces[i].length;
        times.mutable_data()[i] = counts.pieces[i].count;
    }
    return py::make_tuple(text, lengths, times);
}

void py_add_table(PieceCounts& counts, const py::buffer& text, const Counts& lengths, const Counts& times) {
    const Bytes bytes(text);
    if (lengths.size() != times.size()) throw py::value_error("add_table: lengths and times must be as many");
    size_t at = 0;
    for (py::ssize_t i = 0; i < lengths.size(); i++) {
        const uint64_t length = lengths.data()[i];
        if (!length || length > bytes.size - at) throw py::value_error("add_table: lengths must add up to the text's");
        counts.add_piece(bytes.data + at, length, times.data()[i]);
        at += length;
    }
}

py::array_t<int32_t> py_sort_suffixes(const py::array_t<uint16_t, py::array::c_style>& symbols, int32_t below) {
    if (symbols.ndim() != 1 || symbols.size() > INT32_MAX)
        throw py::value_error("sort_suffixes: symbols must be of shape (n,), n below 2 ** 31");
    const uint16_t* data = symbols.data();
    const int32_t n = int32_t(symbols.size());
    for (int32_t i = 0; i < n; i++)
        if (data[i] >= below)
            throw py::value_error("sort_suffixes: symbols must be below " + std::to_string(below) + ", got " +
                                  std::to_string(data[i]));
    py::array_t<int32_t> sorted(n);
    int32_t* out = sorted.mutable_data();
    {
        py::gil_scoped_release free;
        sort_suffixes(data, n, below, out);
    }
    return sorted;
}

}  // namespace

void bind_text(py::module_& m) {
    m.def("sort_suffixes", py_sort_suffixes, "symbols"_a, "below"_a);
    py::class_<Bpe>(m, "Bpe", "Byte-level BPE: npgpt.text.bpe.ReferenceBpe, compiled.")
        .def(py::init([](const Ids& byte_ids, const Ids& merges, const std::vector<std::string>& tokens,
                         const std::string& split, const Ids& whole_pieces) {
                 const uint32_t* whole = whole_pieces.data();
                 return std::make_unique<Bpe>(byte_ids_of(byte_ids), merges_of(merges), tokens, split_of(split),
                                              std::vector<uint32_t>(whole, whole + whole_pieces.size()));
             }),
             "byte_ids"_a, "merges"_a, "tokens"_a, "split"_a = "gpt-2", "whole_pieces"_a = Ids(0))
        .def("encode", py_encode, "text"_a)
        .def("decode", py_decode, "ids"_a);
    py::class_<Spm>(m, "Spm", "SentencePiece's BPE: npgpt.text.spm.ReferenceSpm, compiled.")
        .def(py::init(&make_spm), "symbols"_a, "n_tokens"_a, "merges"_a, "byte_ids"_a, "unknown"_a = NO_ID,
             "fuse"_a = true, "words"_a = false)
        .def("encode", py_encode_spm, "text"_a, "prefix"_a = false);
    py::class_<PieceCounts>(m, "PieceCounts", "npgpt.text.bpe.ReferenceCounts, compiled.")
        .def(py::init<>())
        .def(
            "add",
            [](PieceCounts& counts, const py::buffer& text) {
                const Bytes bytes(text);
                py::gil_scoped_release free;
                counts.add(bytes.data, bytes.size);
            },
            "text"_a)
        .def("table", py_table)
        .def("add_table", py_add_table, "text"_a, "lengths"_a, "times"_a)
        .def("__len__", [](const PieceCounts& counts) { return counts.pieces.size(); })
        .def("train", py_train, "byte_ids"_a, "count"_a, "min_count"_a);
}

}  // namespace npgpt
