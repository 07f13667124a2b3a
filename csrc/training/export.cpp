#include "export.h"

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "../runtime/error.h"
#include "files.h"

namespace npgpt {
namespace {

constexpr size_t ALIGNMENT = 32;

// What stands before the weights
class Head {
  public:
    void bytes(const void* data, size_t size) { text.append(static_cast<const char*>(data), size); }
    template <class Number>
    void number(Number value) {
        bytes(&value, sizeof(value));
    }
    void string(const std::string& value) {
        number(uint64_t(value.size()));
        bytes(value.data(), value.size());
    }
    void key(const char* name, uint32_t type) {
        string(name);
        number(type);
        count++;
    }
    void word(const char* name, const char* value) { key(name, 8), string(value); }
    void whole(const char* name, Index value) { key(name, 4), number(uint32_t(value)); }
    void list(const char* name, uint32_t type, size_t n) { key(name, 9), number(type), number(uint64_t(n)); }

    std::string text;
    uint64_t count = 0;  // of keys
};

Head head_of(const Gpt2& model, const Tokens& tokens) {
    Head head;
    head.word("general.architecture", "gpt2");
    head.word("general.name", "npgpt");
    head.whole("general.file_type", 0);
    head.whole("general.quantization_version", 2);
    head.whole("gpt2.context_length", model.shape.block_size);
    head.whole("gpt2.embedding_length", model.shape.n_embd);
    head.whole("gpt2.block_count", model.shape.n_layer);
    head.whole("gpt2.feed_forward_length", 4 * model.shape.n_embd);
    head.whole("gpt2.attention.head_count", model.shape.n_head);
    head.key("gpt2.attention.layer_norm_epsilon", 6), head.number(Gpt2::EPSILON);
    head.key("npgpt.bias", 7), head.number(uint8_t(1));
    head.word("tokenizer.ggml.model", "gpt2");
    head.word("tokenizer.ggml.pre", "gpt-2");
    if (!tokens.are_bytes()) head.whole("tokenizer.ggml.unknown_token_id", tokens.end_of_text());
    head.list("tokenizer.ggml.merges", 8, tokens.merges.size());
    for (const Merge& merge : tokens.merges) head.string(tokens.names[merge.left] + " " + tokens.names[merge.right]);
    head.list("tokenizer.ggml.tokens", 8, tokens.size());
    for (const std::string& name : tokens.names) head.string(name);
    head.list("tokenizer.ggml.token_type", 5, tokens.size());
    for (size_t id = 0; id < tokens.size(); id++)
        head.number(int32_t(id + 1 < tokens.size() ? 1 : 3));  // normal, control
    for (const char* end : {"bos", "eos", "padding"})
        head.whole((std::string("tokenizer.ggml.") + end + "_token_id").c_str(), tokens.end_of_text());
    return head;
}

// GGUF's name of a parameter
std::string named(const std::string& ours) {
    static const char* const NAMES[][2] = {
        {"wte", "token_embd"}, {"wpe", "position_embd"},    {"ln_f", "output_norm"},
        {"ln_1", "attn_norm"}, {"attn.c_attn", "attn_qkv"}, {"attn.c_proj", "attn_output"},
        {"ln_2", "ffn_norm"},  {"mlp.c_fc", "ffn_up"},      {"mlp.c_proj", "ffn_down"},
    };
    const size_t dot = ours.rfind('.'), layer = ours.compare(0, 2, "h.") ? 0 : ours.find('.', 2) + 1;
    const std::string part = ours.substr(layer, dot - layer), prefix = layer ? "blk" + ours.substr(1, layer - 1) : "";
    for (const auto& [mine, theirs] : NAMES)
        if (part == mine) return prefix + theirs + ours.substr(dot);
    return ours;
}

// Those of linear layers are (in,out) here, (out,in) there
bool is_linear(const Parameter& parameter) { return parameter.rows > 1 && parameter.name[0] == 'h'; }

}  // namespace

void export_gguf(const Gpt2& model, const Tokens& tokens, const char* path) {
    for (Index i = 0; i < model.size; i++)
        if (!std::isfinite(model.params.data[i])) fail(NPGPT_NOT_FINITE, "%s: the weights are no numbers", path);
    const Head keys = head_of(model, tokens);
    Head head;
    head.bytes("GGUF", 4);
    head.number(uint32_t(3)), head.number(uint64_t(model.parameters.size())), head.number(keys.count);
    head.text += keys.text;
    const auto aligned = [](size_t n) { return (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; };
    uint64_t offset = 0;
    for (const Parameter& parameter : model.parameters) {
        const bool vector = parameter.start >= model.n_decay, linear = is_linear(parameter);
        head.string(named(parameter.name));
        head.number(uint32_t(vector ? 1 : 2));
        head.number(uint64_t(linear ? parameter.rows : parameter.columns));
        if (!vector) head.number(uint64_t(linear ? parameter.columns : parameter.rows));
        head.number(uint32_t(0)), head.number(offset);
        offset += aligned(size_t(parameter.rows * parameter.columns) * sizeof(float));
    }
    head.text.resize(aligned(head.text.size()));

    NewFile file(path);
    file.write(head.text.data(), head.text.size());
    std::vector<float> turned;
    for (const Parameter& parameter : model.parameters) {
        const float* data = model.params.data + parameter.start;
        const Index rows = parameter.rows, columns = parameter.columns;
        if (is_linear(parameter)) {
            turned.resize(size_t(rows * columns));
            for (Index i = 0; i < rows; i++)
                for (Index j = 0; j < columns; j++) turned[size_t(j * rows + i)] = data[i * columns + j];
            data = turned.data();
        }
        const size_t size = size_t(rows * columns) * sizeof(float);
        static const char padding[ALIGNMENT] = "";
        file.write(data, size);
        file.write(padding, aligned(size) - size);
    }
    file.keep();
}

}  // namespace npgpt
