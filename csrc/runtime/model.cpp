#include "model.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <functional>
#include <string>

#include "../threads/pool.h"
#include "error.h"

namespace npgpt {

Mapping::Mapping(const char* path) {
    const int file = ::open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe must not make us wait
    if (file < 0) fail(NPGPT_BAD_FILE, "%s: %s", path, std::strerror(errno));
    struct stat about;
    void* mapped = MAP_FAILED;
    if (::fstat(file, &about) != 0 || !S_ISREG(about.st_mode) || about.st_size <= 0)
        errno = EINVAL;
    else
        mapped = ::mmap(nullptr, size_t(about.st_size), PROT_READ, MAP_PRIVATE, file, 0);
    const int error = errno;
    ::close(file);
    if (mapped == MAP_FAILED) fail(NPGPT_BAD_FILE, "%s: cannot be mapped: %s", path, std::strerror(error));
    data = static_cast<const uint8_t*>(mapped);
    size = size_t(about.st_size);
    // Huge pages, where the system keeps files in such: by MADV_WILLNEED it would read small ones.
    if (::madvise(mapped, size, MADV_HUGEPAGE) != 0) ::madvise(mapped, size, MADV_WILLNEED);
}

Mapping::~Mapping() { ::munmap(const_cast<uint8_t*>(data), size); }

namespace {

constexpr uint64_t MANY = 1 << 24;  // more layers, channels, positions or tokens than anybody has

// What a source of tensors has under GPT-2's name, in the shape (N,K); null where it has none.
using Finder = std::function<const void*(const char* name, Index N, Index K, bool linear, WeightType* type)>;

// The parameters of GPT-2, taken from a source by name and shape.
struct Builder {
    Model& model;
    const Finder& find;

    Matrix matrix(const std::string& name, Index N, Index K, bool linear, bool required = true) const {
        WeightType type = F32;
        const void* data = find(name.c_str(), N, K, linear, &type);
        if (!data && required) fail(NPGPT_BAD_FORMAT, "the tensor %s is missing", name.c_str());
        return {data, type, N, K, N};
    }
    const float* vector(const std::string& name, Index n, bool required) const {
        const Matrix found = matrix(name, 1, n, false, required);
        if (found.type != F32) fail(NPGPT_UNSUPPORTED, "the tensor %s must be F32", name.c_str());
        return static_cast<const float*>(found.data);
    }
    Norm norm(const std::string& name, Index C) const {
        return {vector(name + ".weight", C, true), vector(name + ".bias", C, false)};
    }
    Linear linear(const std::string& name, Index N, Index K) const {
        return {matrix(name + ".weight", N, K, true), vector(name + ".bias", N, false)};
    }
    void build() const {
        npgpt_config& c = model.config;
        const auto positive = [](const char* name, int32_t value) {
            if (value < 1) fail(NPGPT_BAD_ARGUMENT, "config: %s must be at least 1, got %d", name, value);
        };
        positive("n_layer", c.n_layer), positive("n_head", c.n_head), positive("n_embd", c.n_embd);
        positive("block_size", c.block_size), positive("vocab_size", c.vocab_size);
        if (c.n_embd % c.n_head)
            fail(NPGPT_BAD_FORMAT, "config: n_embd must be a multiple of n_head (%d), got %d", c.n_head, c.n_embd);
        if (c.n_embd > int32_t(MANY) || c.window < 0)
            fail(NPGPT_BAD_FORMAT, "config: n_embd must be at most %llu and window at least 0, got %d and %d",
                 (unsigned long long)MANY, c.n_embd, c.window);
        if (!(c.layer_norm_epsilon > 0 && std::isfinite(c.layer_norm_epsilon) && std::isfinite(c.scale)))
            fail(NPGPT_BAD_FORMAT, "config: layer_norm_epsilon must be positive and scale finite, got %g and %g",
                 double(c.layer_norm_epsilon), double(c.scale));
        if (c.scale == 0) c.scale = 1 / std::sqrt(float(c.n_embd) / float(c.n_head));
        const Index C = c.n_embd;
        model.wte = matrix("wte.weight", c.vocab_size, C, false);
        model.wpe = matrix("wpe.weight", c.block_size, C, false);
        model.head = matrix("lm_head.weight", c.vocab_size, C, false, false);
        if (!model.head.data) model.head = model.wte;
        for (int32_t i = 0; i < c.n_layer; i++) {
            const std::string layer = "h." + std::to_string(i) + ".";
            model.in_place->layers.push_back({norm(layer + "ln_1", C), norm(layer + "ln_2", C),
                                              linear(layer + "attn.c_attn", 3 * C, C),
                                              linear(layer + "attn.c_proj", C, C), linear(layer + "mlp.c_fc", 4 * C, C),
                                              linear(layer + "mlp.c_proj", C, 4 * C)});
        }
        model.ln_f = c.post_norm ? Norm{nullptr, nullptr} : norm("ln_f", C);
    }
};

// GPT-2's name of a tensor -> GGUF's
std::string gguf_name(std::string name) {
    static const char* const NAMES[][2] = {
        {"wte.", "token_embd."},
        {"wpe.", "position_embd."},
        {"lm_head.", "output."},
        {"ln_f.", "output_norm."},
        {"ln_1.", "attn_norm."},
        {"ln_2.", "ffn_norm."},
        {"attn.c_attn.", "attn_qkv."},
        {"attn.c_proj.", "attn_output."},
        {"mlp.c_fc.", "ffn_up."},
        {"mlp.c_proj.", "ffn_down."},
        {"h.", "blk."},
    };
    for (const auto& [ours, theirs] : NAMES) {
        const size_t at = name.find(ours);
        if (at == 0 || (at != name.npos && name[at - 1] == '.')) name.replace(at, std::strlen(ours), theirs);
    }
    return name;
}

}  // namespace

std::shared_ptr<Model> Model::open(const char* path) {
    auto mapping = std::make_unique<Mapping>(path);
    auto model = from_gguf(mapping->data, mapping->size);
    model->mapping = std::move(mapping);
    return model;
}

std::shared_ptr<Model> Model::from_gguf(const uint8_t* data, size_t size) {
    if (reinterpret_cast<uintptr_t>(data) % 32) fail(NPGPT_BAD_ARGUMENT, "data must lie on a multiple of 32 bytes");
    const Gguf file(data, size);
    auto model = std::make_shared<Model>();
    const std::string_view architecture = file.text("general.architecture");
    const bool own = architecture == "npgpt";
    if (!own && architecture != "gpt2")
        fail(NPGPT_UNSUPPORTED, "GGUF: general.architecture must be gpt2 or npgpt, got %.*s", shown(architecture),
             architecture.data());
    const auto key = [&](const char* name) { return std::string(architecture) + "." + name; };
    const auto size_of = [&](const char* name) { return int32_t(file.integer(key(name).c_str(), 1, MANY)); };
    npgpt_config& c = model->config;
    c = {};
    c.n_layer = size_of("block_count"), c.n_head = size_of("attention.head_count"),
    c.n_embd = size_of("embedding_length");
    c.block_size = size_of("context_length");
    c.layer_norm_epsilon = float(file.number(key("attention.layer_norm_epsilon").c_str()));
    if (file.has(key("feed_forward_length").c_str()) && size_of("feed_forward_length") != 4 * int64_t(c.n_embd))
        fail(NPGPT_UNSUPPORTED, "GGUF: %s must be four times the embedding_length", key("feed_forward_length").c_str());
    if (own) {
        c.post_norm = int32_t(file.integer("npgpt.post_norm", 0, 1, 0));
        c.exact_gelu = int32_t(file.integer("npgpt.exact_gelu", 0, 1, 0));
        c.window = int32_t(file.integer("npgpt.attention.sliding_window", 1, INT32_MAX, 0));
        c.scale = float(file.number("npgpt.attention.scale", 0));
    }
    if (file.text("tokenizer.ggml.model") == "no_vocab") {
        c.vocab_size = size_of("vocab_size");
    } else {
        model->vocabulary = std::make_unique<Vocabulary>(file);
        c.vocab_size = int32_t(model->vocabulary->size());
    }
    const Finder find = [&](const char* name, Index N, Index K, bool, WeightType* type) -> const void* {
        const std::string theirs = gguf_name(name);
        const Gguf::Tensor* const tensor = file.find_tensor(theirs);
        if (!tensor) return nullptr;
        if (tensor->columns != uint64_t(K) || tensor->rows != uint64_t(N) || tensor->dimensions > 2)
            fail(NPGPT_BAD_FORMAT, "GGUF: tensor %s must be (%td, %td), got (%llu, %llu) in %d dimensions",
                 theirs.c_str(), K, N, (unsigned long long)tensor->columns, (unsigned long long)tensor->rows,
                 tensor->dimensions);
        tensor->used = true;
        *type = tensor->type;
        return tensor->data;
    };
    Builder{*model, find}.build();
    for (const Gguf::Tensor& tensor : file.tensors)
        if (!tensor.used)
            fail(NPGPT_UNSUPPORTED, "GGUF: tensor %.*s is none of a GPT's", shown(tensor.name), tensor.name.data());
    return model;
}

std::shared_ptr<Model> Model::from_tensors(const npgpt_config& config, const npgpt_tensor* tensors, size_t count) {
    auto model = std::make_shared<Model>();
    model->config = config;
    const Finder find = [&](const char* name, Index N, Index K, bool linear, WeightType* type) -> const void* {
        for (size_t i = 0; i < count; i++) {
            const npgpt_tensor& tensor = tensors[i];
            if (!tensor.name || std::strcmp(tensor.name, name)) continue;
            const bool columns = linear && !tensor.transposed;
            const Index rows = columns ? K : N, across = columns ? N : K;
            if (!tensor.data || tensor.rows != rows || tensor.columns != across)
                fail(NPGPT_BAD_ARGUMENT, "tensor %s must have data of (%td, %td), got (%d, %d)", name, rows, across,
                     int(tensor.rows), int(tensor.columns));
            *type = columns ? COLUMNS : F32;
            return tensor.data;
        }
        return nullptr;
    };
    Builder{*model, find}.build();
    return model;
}

static size_t packed_floats(const Matrix& w) { return size_t(round_up(w.N, STRIP) * w.K); }

static void pack_strips(float* strips, const Matrix& w) {
    parallel_for((w.N + STRIP - 1) / STRIP, [&](Index strip, int) {
        const Index first = strip * STRIP, n = std::min(STRIP, w.N - first);
        const float* from = static_cast<const float*>(w.data) + first;
        float* to = strips + first * w.K;
        for (Index k = 0; k < w.K; k++, from += w.N, to += STRIP) {
            std::copy_n(from, n, to);
            std::fill(to + n, to + STRIP, 0.0f);
        }
    });
}

void Model::pack() {
    if (layers()->packed.data) return;
    auto made = std::make_shared<Layers>();
    made->version = version;
    made->layers = in_place->layers;
    size_t floats = 0;
    const auto each = [&](auto&& body) {
        for (Layer& layer : made->layers)
            for (Linear* linear : {&layer.c_attn, &layer.attn_proj, &layer.c_fc, &layer.mlp_proj})
                if (linear->weight.type == COLUMNS) body(linear->weight);
    };
    each([&](Matrix& w) { floats += packed_floats(w); });
    if (!floats) return;
    float* strips = made->packed.room(floats);
    each([&](Matrix& w) {
        pack_strips(strips, w);
        w.data = strips, w.strip = STRIP;
        strips += packed_floats(w);
    });
    std::lock_guard<std::mutex> lock(packing);
    packed = std::move(made);
}

std::shared_ptr<const Layers> Model::layers() const {
    std::lock_guard<std::mutex> lock(packing);
    return packed && packed->version == version ? packed : in_place;
}

}  // namespace npgpt
