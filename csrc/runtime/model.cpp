#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <string>

#include "../threads/pool.h"
#include "error.h"

namespace npgpt {

namespace {

constexpr uint64_t MANY = 1 << 24;  // more layers, channels, positions or tokens than anybody has

// What a source of tensors has under GPT-2's name, in the shape (N,K); null where it has none.
using Finder = std::function<const void*(const char* name, Index N, Index K, bool linear, WeightType* type)>;

// GPT-2's name of a tensor -> GGUF's
std::string gguf_name(std::string name) {
    static const char* const NAMES[][2] = {
        {"wte.", "token_embd."},          {"wpe.", "position_embd."},
        {"lm_head.", "output."},          {"ln_f.", "output_norm."},
        {"ln_1.", "attn_norm."},          {"ln_2.", "ffn_norm."},
        {"attn.c_attn.", "attn_qkv."},    {"attn.q.", "attn_q."},
        {"attn.k.", "attn_k."},           {"attn.v.", "attn_v."},
        {"attn.c_proj.", "attn_output."}, {"mlp.c_fc.", "ffn_up."},
        {"mlp.gate.", "ffn_gate."},       {"mlp.up.", "ffn_up."},
        {"mlp.c_proj.", "ffn_down."},     {"h.", "blk."},
    };
    for (const auto& [ours, theirs] : NAMES) {
        const size_t at = name.find(ours);
        if (at == 0 || (at != name.npos && name[at - 1] == '.')) name.replace(at, std::strlen(ours), theirs);
    }
    return name;
}

// A name or key, without the memory and the code of a std::string
struct Name {
    char text[128];
    Name(const char* before, std::string_view name, const char* behind = "") {
        std::snprintf(text, sizeof(text), "%s%.*s%s", before, shown(name), name.data(), behind);
    }
    operator const char*() const { return text; }
};

// The parameters of a model, taken from a source by name and shape.
struct Builder {
    Model& model;
    const Finder& find;
    const bool gguf;  // whose names the messages say
    const bool apart = false;  // queries, keys and values are three matrices, gates and what they let through two

    [[noreturn]] void refuse(npgpt_status status, const char* name, const char* why) const {
        fail(status, "%s tensor %s %s", gguf ? "GGUF:" : "the", gguf ? gguf_name(name).c_str() : name, why);
    }
    Matrix matrix(const char* name, Index N, Index K, bool linear, bool required = true) const {
        WeightType type = F32;
        const void* data = find(name, N, K, linear, &type);
        if (!data && required) refuse(NPGPT_BAD_FORMAT, name, "is missing");
        return {data, type, N, K, N};
    }
    const float* vector(const char* name, Index n, bool required) const {
        const Matrix found = matrix(name, 1, n, false, required);
        if (found.type != F32) refuse(NPGPT_UNSUPPORTED, name, "must be F32");
        return static_cast<const float*>(found.data);
    }
    Norm norm(const char* layer, const char* name, Index C) const {
        const float* const weight = vector(Name(layer, name, ".weight"), C, true);
        return {weight, model.config.rms_norm ? nullptr : vector(Name(layer, name, ".bias"), C, false)};
    }
    struct Part {
        const char* name;
        Index N;
    };
    Linear linear(const char* layer, std::initializer_list<Part> parts, Index K) const {
        Linear made;
        for (const auto& [name, N] : parts) {
            const Matrix weight = matrix(Name(layer, name, ".weight"), N, K, true);
            made.add(weight, vector(Name(layer, name, ".bias"), N, false));
        }
        return made;
    }
    static void check_rope(const npgpt_config& c) {
        for (const float value : {c.rope_theta, c.rope_factor, c.rope_low, c.rope_high, c.rope_context})
            if (!(value >= 0 && std::isfinite(value)))
                fail(NPGPT_BAD_FORMAT, "config: the numbers of rotary positions must be finite and at least 0, got %g",
                     double(value));
        if (c.rope_theta && c.head_size % 2)
            fail(NPGPT_BAD_FORMAT, "config: rotary positions turn pairs, got heads of %d", c.head_size);
        if (c.rope_high && !(c.rope_low < c.rope_high && c.rope_context))
            fail(NPGPT_BAD_FORMAT,
                 "config: rope_high must be above rope_low (%g) and rope_context above 0, got %g and %g",
                 double(c.rope_low), double(c.rope_high), double(c.rope_context));
    }
    void check_factors(const float* first, const float* end) const {
        const float factor = model.config.rope_factor;
        if (factor != 0 && factor != 1)
            refuse(NPGPT_UNSUPPORTED, "rope_freqs.weight", "must be alone, got a factor of all speeds beside it");
        const bool numbers = std::all_of(first, end, [](float x) { return x > 0 && std::isfinite(x); });
        if (!numbers || !std::is_sorted(first, end) || (*first < 1 && *first != end[-1]))
            refuse(NPGPT_UNSUPPORTED, "rope_freqs.weight",
                   "must be factors that are all the same, or those of llama3's scaling");
    }
    // As Rope.angles of npgpt/engine/config.py, for one token
    std::vector<float> rope_speeds() const {
        const npgpt_config& c = model.config;
        const float* const slower = vector("rope_freqs.weight", c.head_size / 2, false);
        if (slower) check_factors(slower, slower + c.head_size / 2);
        std::vector<float> speeds;
        const double factor = c.rope_factor ? double(c.rope_factor) : 1.0;
        for (int32_t i = 0; i < c.head_size / 2; i++) {
            const double speed = std::pow(double(c.rope_theta), -2.0 * i / c.head_size);
            double share = 0;  // of the pair's own speed
            if (c.rope_high) {
                const double turns = double(c.rope_context) * speed / (2 * 3.14159265358979323846);
                share = (turns - double(c.rope_low)) / (double(c.rope_high) - double(c.rope_low));
                share = std::min(1.0, std::max(0.0, share));
            }
            speeds.push_back(float((share * speed + (1 - share) * speed / factor) / (slower ? double(slower[i]) : 1)));
        }
        return speeds;
    }
    void build() const {
        npgpt_config& c = model.config;
        const auto positive = [](const char* name, int32_t value) {
            if (value < 1) fail(NPGPT_BAD_ARGUMENT, "config: %s must be at least 1, got %d", name, value);
        };
        positive("n_layer", c.n_layer), positive("n_head", c.n_head), positive("n_embd", c.n_embd);
        positive("block_size", c.block_size), positive("vocab_size", c.vocab_size);
        if (c.n_embd % c.n_head && !c.head_size)
            fail(NPGPT_BAD_FORMAT, "config: n_embd must be a multiple of n_head (%d), got %d", c.n_head, c.n_embd);
        if (!c.n_kv_head) c.n_kv_head = c.n_head;
        if (!c.head_size) c.head_size = c.n_embd / c.n_head;
        if (!c.n_inner) c.n_inner = int32_t(std::min(uint64_t(c.n_embd) * 4, MANY * 4));
        positive("n_kv_head", c.n_kv_head), positive("head_size", c.head_size), positive("n_inner", c.n_inner);
        if (c.n_head % c.n_kv_head)
            fail(NPGPT_BAD_FORMAT, "config: n_kv_head must divide n_head (%d), got %d", c.n_head, c.n_kv_head);
        if (uint64_t(c.n_head) * uint64_t(c.head_size) > MANY || uint64_t(c.n_inner) > MANY * 4)
            fail(NPGPT_BAD_FORMAT, "config: heads and MLPs must have at most %llu numbers, got %d of %d, and %d",
                 (unsigned long long)MANY, c.n_head, c.head_size, c.n_inner);
        check_rope(c);
        if (c.n_embd > int32_t(MANY) || c.window < 0)
            fail(NPGPT_BAD_FORMAT, "config: n_embd must be at most %llu and window at least 0, got %d and %d",
                 (unsigned long long)MANY, c.n_embd, c.window);
        if (!(c.layer_norm_epsilon > 0 && std::isfinite(c.layer_norm_epsilon) && std::isfinite(c.scale)))
            fail(NPGPT_BAD_FORMAT, "config: layer_norm_epsilon must be positive and scale finite, got %g and %g",
                 double(c.layer_norm_epsilon), double(c.scale));
        if (c.scale == 0) c.scale = 1 / std::sqrt(float(c.head_size));
        const Index C = c.n_embd, D = c.head_size, F = c.n_inner;
        model.wte = matrix("wte.weight", c.vocab_size, C, false);
        if (!c.rope_theta) model.wpe = matrix("wpe.weight", c.block_size, C, false);
        model.head = matrix("lm_head.weight", c.vocab_size, C, false, false);
        if (!model.head.data) model.head = model.wte;
        for (int32_t i = 0; i < c.n_layer; i++) {
            char layer[16];
            std::snprintf(layer, sizeof(layer), "h.%d.", i);
            const Index Q = c.n_head * D, KV = c.n_kv_head * D;
            model.in_place->layers.push_back({norm(layer, "ln_1", C), norm(layer, "ln_2", C),
                                              apart ? linear(layer, {{"attn.q", Q}, {"attn.k", KV}, {"attn.v", KV}}, C)
                                                    : linear(layer, {{"attn.c_attn", Q + 2 * KV}}, C),
                                              linear(layer, {{"attn.c_proj", C}}, Q),
                                              apart ? linear(layer, {{"mlp.gate", F}, {"mlp.up", F}}, C)
                                                    : linear(layer, {{"mlp.c_fc", (c.gated ? 2 : 1) * F}}, C),
                                              linear(layer, {{"mlp.c_proj", C}}, F)});
        }
        model.ln_f = c.post_norm ? Norm{nullptr, nullptr} : norm("", "ln_f", C);
        if (c.rope_theta) model.speeds = rope_speeds();
    }
};

float positive(const Gguf& file, const char* key) {
    const double value = file.number(key);
    if (!(value > 0 && std::isfinite(value)))
        fail(NPGPT_BAD_FORMAT, "GGUF: %s must be positive and finite, got %g", key, value);
    return float(value);
}

struct Architecture {
    std::string_view name;
    const char* prefix;  // of its keys
    unsigned bit;
};
enum : unsigned { GPT2 = 1, OWN = 2, LLAMA = 4, ALL = GPT2 | OWN | LLAMA };
constexpr Architecture ARCHITECTURES[] = {
    {"gpt2", "gpt2.", GPT2}, {"npgpt", "npgpt.", OWN}, {"llama", "llama.", LLAMA}};

const Architecture& architecture_of(const Gguf& file) {
    const std::string_view name = file.text("general.architecture");
    for (const Architecture& known : ARCHITECTURES)
        if (known.name == name) return known;
    fail(NPGPT_UNSUPPORTED, "GGUF: general.architecture must be gpt2, llama or npgpt, got %.*s", shown(name),
         name.data());
}

// Rotary positions. Those of Llama 3 come as a tensor, rope_freqs.weight, that no key tells of.
void read_rope(const Gguf& file, npgpt_config& c) {
    c.rope_theta = file.has("llama.rope.freq_base") ? positive(file, "llama.rope.freq_base") : 10000;
    const char* const type = "llama.rope.scaling.type";
    const std::string_view scaling = file.has(type) ? file.text(type) : "linear";
    if (scaling != "linear" && scaling != "none")
        fail(NPGPT_UNSUPPORTED, "GGUF: %s must be none or linear, got %.*s", type, shown(scaling), scaling.data());
    const bool renamed = file.has("llama.rope.scaling.factor");
    const char* const factor = renamed ? "llama.rope.scaling.factor" : "llama.rope.scale_linear";
    if (scaling == "linear" && file.number(factor, 0) != 0) c.rope_factor = positive(file, factor);
    if (file.number("llama.rope.scaling.attn_factor", 1) != 1)
        fail(NPGPT_UNSUPPORTED, "GGUF: llama.rope.scaling.attn_factor must be 1");
}

// The shape of the model from the keys behind `prefix`; the vocabulary's size where there is no tokenizer.
void read_config(const Gguf& file, const Architecture& of, npgpt_config& c) {
    const char* const prefix = of.prefix;
    const auto size_of = [&](const char* name, auto... missing) {
        return int32_t(file.integer(Name(prefix, name), 1, MANY, uint64_t(missing)...));
    };
    c = {};
    c.n_layer = size_of("block_count"), c.n_head = size_of("attention.head_count");
    c.n_embd = size_of("embedding_length"), c.block_size = size_of("context_length");
    if (file.text("tokenizer.ggml.model") == "no_vocab") c.vocab_size = size_of("vocab_size");
    if (!file.flag(Name(prefix, "attention.causal"), true))
        fail(NPGPT_UNSUPPORTED, "GGUF: %sattention.causal must be true", prefix);
    if (of.bit == LLAMA) {
        c.layer_norm_epsilon = positive(file, "llama.attention.layer_norm_rms_epsilon");
        c.n_kv_head = size_of("attention.head_count_kv", c.n_head);
        c.head_size = size_of("attention.key_length", c.n_embd % c.n_head ? 0 : c.n_embd / c.n_head);
        c.n_inner = size_of("feed_forward_length");
        c.rms_norm = c.gated = 1;
        return read_rope(file, c);
    }
    c.layer_norm_epsilon = positive(file, Name(prefix, "attention.layer_norm_epsilon"));
    c.post_norm = file.flag("npgpt.post_norm", false), c.exact_gelu = file.flag("npgpt.exact_gelu", false);
    c.window = int32_t(file.integer("npgpt.attention.sliding_window", 1, INT32_MAX, 0));
    if (file.has("npgpt.attention.scale")) c.scale = positive(file, "npgpt.attention.scale");
    if (c.post_norm && (c.window || c.exact_gelu))
        fail(NPGPT_UNSUPPORTED, "GGUF: npgpt.post_norm must be alone, got a window or exact GELU beside it");
}

// The rules of docs/formats.md, which npgpt/interop/gguf.py holds too: of a key that is none of these nobody knows what it
// changes, and some may only say what the sizes say.
void check_keys(const Gguf& file, const Architecture& of, const npgpt_config& c) {
    constexpr int64_t ANY = -1;
    const int64_t C = c.n_embd, D = c.head_size ? c.head_size : C / c.n_head;
    const struct {
        const char* name;
        unsigned of;  // architectures
        int64_t only;
    } rules[] = {{"block_count", ALL, ANY},
                 {"embedding_length", ALL, ANY},
                 {"context_length", ALL, ANY},
                 {"vocab_size", ALL, ANY},
                 {"attention.head_count", ALL, ANY},
                 {"attention.causal", ALL, ANY},
                 {"embedding_length_out", ALL, C},
                 {"expert_count", ALL, 0},
                 {"expert_used_count", ALL, 0},
                 {"tensor_data_layout", LLAMA, ANY},
                 {"attention.value_length", ALL, D},
                 {"attention.layer_norm_epsilon", GPT2 | OWN, ANY},
                 {"feed_forward_length", GPT2 | OWN, 4 * C},
                 {"attention.head_count_kv", GPT2 | OWN, c.n_head},
                 {"attention.key_length", GPT2 | OWN, D},
                 {"post_norm", OWN, ANY},
                 {"exact_gelu", OWN, ANY},
                 {"attention.sliding_window", OWN, ANY},
                 {"attention.scale", OWN, ANY},
                 {"attention.layer_norm_rms_epsilon", LLAMA, ANY},
                 {"feed_forward_length", LLAMA, ANY},
                 {"attention.head_count_kv", LLAMA, ANY},
                 {"attention.key_length", LLAMA, ANY},
                 {"rope.dimension_count", LLAMA, D},
                 {"rope.freq_base", LLAMA, ANY},
                 {"rope.scaling.type", LLAMA, ANY},
                 {"rope.scaling.factor", LLAMA, ANY},
                 {"rope.scaling.attn_factor", LLAMA, ANY},
                 {"rope.scaling.original_context_length", LLAMA, ANY},
                 {"rope.scaling.finetuned", LLAMA, ANY},
                 {"rope.scale_linear", LLAMA, ANY}};
    for (const Architecture& other : ARCHITECTURES)
        for (const std::string_view name : file.keys(other.prefix)) {
            const Name key(other.prefix, name);
            if (other.bit == OWN && (Vocabulary::has_key(name) || (name == "bias" && of.bit != LLAMA))) continue;
            const auto rule = std::find_if(std::begin(rules), std::end(rules),
                                           [&](const auto& rule) { return rule.name == name && rule.of & of.bit; });
            if (other.bit != of.bit || rule == std::end(rules))
                fail(NPGPT_UNSUPPORTED, "GGUF: %s is no key of %s that npgpt computes with", key.text, of.name.data());
            if (rule->only == ANY) continue;
            const uint64_t found = file.integer(key, 0, INT64_MAX);
            if (found != uint64_t(rule->only))
                fail(NPGPT_UNSUPPORTED, "GGUF: %s must be %lld, got %llu", key.text, (long long)rule->only,
                     (unsigned long long)found);
        }
}

bool is_zero(const void* data, Index n) {
    const float* const x = static_cast<const float*>(data);
    return std::all_of(x, x + n, [](float value) { return value == 0; });
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
    const Architecture& of = architecture_of(file);
    const bool llama = of.bit == LLAMA;
    read_config(file, of, model->config);
    check_keys(file, of, model->config);
    if (file.text("tokenizer.ggml.model") != "no_vocab") {
        model->vocabulary = std::make_unique<Vocabulary>(file);
        model->config.vocab_size = int32_t(model->vocabulary->size());
    }
    const bool biases = file.flag("npgpt.bias", true);
    const Finder find = [&](const char* name, Index N, Index K, bool, WeightType* type) -> const void* {
        const std::string theirs = gguf_name(name);
        const Gguf::Tensor* const tensor = file.find_tensor(theirs);
        const size_t length = std::strlen(name);
        const bool bias = length > 5 && !std::strcmp(name + length - 5, ".bias");
        // With windows queries, keys and values have no biases, as in GPT-Neo.
        if (!tensor || (model->config.window && bias && std::strstr(name, "c_attn"))) return nullptr;
        if (tensor->columns != uint64_t(K) || tensor->rows != uint64_t(N))
            fail(NPGPT_BAD_FORMAT, "GGUF: tensor %s must be (%td, %td), got (%llu, %llu) in %d dimensions",
                 theirs.c_str(), K, N, (unsigned long long)tensor->columns, (unsigned long long)tensor->rows,
                 tensor->dimensions);
        tensor->used = true;
        *type = tensor->type;
        if (bias && !biases && tensor->type == F32 && !is_zero(tensor->data, N * K))
            fail(NPGPT_BAD_FORMAT, "GGUF: tensor %s must be zero, as npgpt.bias is false", theirs.c_str());
        return tensor->data;
    };
    model->in_pairs = llama;
    Builder{*model, find, true, llama}.build();
    for (const Gguf::Tensor& tensor : file.tensors)
        if (!tensor.used)
            fail(NPGPT_UNSUPPORTED, "GGUF: tensor %.*s is none of a model of %s", shown(tensor.name),
                 tensor.name.data(), of.name.data());
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
    Builder{*model, find, false}.build();
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
                for (Linear::Part& part : linear->parts)
                    if (part.weight.type == COLUMNS) body(part.weight);
    };
    each([&](Matrix& w) { floats += packed_floats(w); });
    if (!floats) return;
    float* strips = made->packed.room(floats);
    each([&](Matrix& w) {
        pack_strips(strips, w);
        w.data = strips, w.strip = STRIP;
        strips += packed_floats(w);
    });
    const Lock::Held held(packing);
    packed = std::move(made);
}

std::shared_ptr<const Layers> Model::layers() const {
    const Lock::Held held(packing);
    return packed && packed->version == version ? packed : in_place;
}

}  // namespace npgpt
