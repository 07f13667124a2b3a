#include "gpt2.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "../parallel/ops.h"
#include "generator.h"

namespace npgpt {

enum : uint32_t { EMBEDDING, ATTENTION, MLP };  // what dropout draws for in a layer

Floats& Floats::operator=(Floats&& other) noexcept {
    std::swap(data, other.data);
    std::swap(size, other.size);
    return *this;
}

Gpt2::Gpt2(const Shape& shape_) : shape(shape_), layers(size_t(shape_.n_layer)) {
    const Index C = shape.n_embd;
    const auto add = [&](const std::string& name, Index rows, Index columns) {
        parameters.push_back({name, rows, columns, size});
        size += rows * columns;
        return size - rows * columns;
    };
    const auto prefix = [](size_t layer) { return "h." + std::to_string(layer) + "."; };
    wte.weight = add("wte.weight", shape.vocab_size, C);
    wpe.weight = add("wpe.weight", shape.block_size, C);
    for (size_t i = 0; i < layers.size(); i++) {
        layers[i].c_attn.weight = add(prefix(i) + "attn.c_attn.weight", C, 3 * C);
        layers[i].attn_proj.weight = add(prefix(i) + "attn.c_proj.weight", C, C);
        layers[i].c_fc.weight = add(prefix(i) + "mlp.c_fc.weight", C, 4 * C);
        layers[i].mlp_proj.weight = add(prefix(i) + "mlp.c_proj.weight", 4 * C, C);
    }
    n_decay = size;
    const auto add_norm = [&](const std::string& name) {
        const Index weight = add(name + ".weight", 1, C);
        return Place{weight, add(name + ".bias", 1, C)};
    };
    for (size_t i = 0; i < layers.size(); i++) {
        Layer& layer = layers[i];
        layer.ln_1 = add_norm(prefix(i) + "ln_1");
        layer.c_attn.bias = add(prefix(i) + "attn.c_attn.bias", 1, 3 * C);
        layer.attn_proj.bias = add(prefix(i) + "attn.c_proj.bias", 1, C);
        layer.ln_2 = add_norm(prefix(i) + "ln_2");
        layer.c_fc.bias = add(prefix(i) + "mlp.c_fc.bias", 1, 4 * C);
        layer.mlp_proj.bias = add(prefix(i) + "mlp.c_proj.bias", 1, C);
    }
    ln_f = add_norm("ln_f");
    params = Floats(size);
    grads = Floats(size);
    std::fill(grads.data, grads.data + size, 0.0f);
}

void Gpt2::draw() {
    const uint32_t entropy[] = {shape.seed};
    Generator generator(entropy, 1);
    const auto ends_with = [](const std::string& name, const char* end) {
        const size_t length = std::strlen(end);
        return name.size() >= length && !name.compare(name.size() - length, length, end);
    };
    for (const Parameter& parameter : parameters) {
        float* const w = params.data + parameter.start;
        const Index n = parameter.rows * parameter.columns;
        if (parameter.start >= n_decay) {
            std::fill(w, w + n, ends_with(parameter.name, "bias") ? 0.0f : 1.0f);
            continue;
        }
        const bool residual = ends_with(parameter.name, "c_proj.weight");
        const float deviation = float(residual ? 0.02 / std::sqrt(2.0 * double(shape.n_layer)) : 0.02);
        for (Index i = 0; i < n; i++) w[i] = deviation * generator.normal();
    }
}

double Gpt2::learn(const Batch& batch, Index step) {
    Pass pass{batch, batch.rows * batch.T, step, {}, {}, {}, {}, {}};
    const Floats x = forward(pass);
    Floats dx;
    const double loss = head(pass, x, &dx);
    if (std::isfinite(loss)) backward(pass, std::move(dx));
    return loss;
}

double Gpt2::loss(const Batch& batch) {
    Pass pass{batch, batch.rows * batch.T, 0, {}, {}, {}, {}, {}};
    return head(pass, forward(pass), nullptr);
}

Floats Gpt2::forward(Pass& pass) {
    const Index C = shape.n_embd, H = shape.n_head, B = pass.batch.rows, T = pass.batch.T, rows = pass.rows;
    for (Index i = 0; i < rows; i++) pass.positions.push_back(int32_t(i % T));
    Floats x(rows * C);
    embedding_forward(x.data, pass.batch.x.data(), pass.positions.data(), at(wte.weight), at(wpe.weight), rows, C);
    drop(pass, x, 0, EMBEDDING);
    const Heads heads{B, T, H, H, C / H};
    const float scale = float(1 / std::sqrt(double(heads.D)));
    for (size_t i = 0; i < layers.size(); i++) {
        const Layer& p = layers[i];
        Kept kept;
        const Floats a = normed(x, p.ln_1, kept.mean_1, kept.rstd_1, rows);
        Epilogue epilogue;
        epilogue.bias = at(p.c_attn.bias);
        kept.qkv = Floats(rows * 3 * C);
        matmul(kept.qkv.data, 3 * C, {a.data, C, 1}, {at(p.c_attn.weight), 3 * C, 1}, rows, 3 * C, C, false, &epilogue);
        kept.out = Floats(rows * C), kept.lse = Floats(B * H * T);
        attention_forward(kept.out.data, kept.lse.data, kept.qkv.data, nullptr, heads, scale);
        kept.x_mid = projected(pass, kept.out, p.attn_proj, x, Index(i), ATTENTION, C);
        const Floats m = normed(kept.x_mid, p.ln_2, kept.mean_2, kept.rstd_2, rows);
        Floats act(rows * 4 * C);
        kept.h = Floats(rows * 4 * C);
        epilogue = {};
        epilogue.bias = at(p.c_fc.bias), epilogue.gelu_input = kept.h.data;
        matmul(act.data, 4 * C, {m.data, C, 1}, {at(p.c_fc.weight), 4 * C, 1}, rows, 4 * C, C, false, &epilogue);
        Floats x_out = projected(pass, act, p.mlp_proj, kept.x_mid, Index(i), MLP, 4 * C);
        kept.x = std::move(x);
        x = std::move(x_out);
        if (pass.step) pass.kept.push_back(std::move(kept));
    }
    Floats y = normed(x, ln_f, pass.mean, pass.rstd, rows);
    pass.x = std::move(x);
    return y;
}

void Gpt2::backward(Pass& pass, Floats dx) {
    const Index C = shape.n_embd, H = shape.n_head, rows = pass.rows;
    const Heads heads{pass.batch.rows, pass.batch.T, H, H, C / H};
    const float scale = float(1 / std::sqrt(double(heads.D)));
    // forward: y = norm(x, ln_f)
    dx = norm_backward(dx, pass.x, ln_f, pass.mean, pass.rstd, nullptr, rows);
    for (size_t i = layers.size(); i-- > 0;) {
        const Layer& p = layers[i];
        const Kept kept = std::move(pass.kept[i]);
        // forward: x_out = x_mid + dropout(gelu(h) mlp_proj), h = m c_fc, m = norm(x_mid, ln_2)
        Floats dy;
        const auto dropped = [&](uint32_t place) -> const Floats& {
            if (!shape.dropout) return dx;
            dy = Floats(rows * C);
            std::memcpy(dy.data, dx.data, size_t(rows * C) * sizeof(float));
            drop(pass, dy, Index(i), place);
            return dy;
        };
        Floats dm;
        {
            const Floats m = normed_again(kept.x_mid, p.ln_2, kept.mean_2, kept.rstd_2, rows);
            const Floats& dz = dropped(MLP);
            Floats dh(rows * 4 * C);
            gelu_linear_backward(dh.data, grads.data + p.mlp_proj.weight, grads.data + p.mlp_proj.bias, dz.data,
                                 kept.h.data, at(p.mlp_proj.weight), rows, C, 4 * C);
            dm = linear_backward(dh, m, p.c_fc, rows, 4 * C, C);
        }
        dx = norm_backward(dm, kept.x_mid, p.ln_2, kept.mean_2, kept.rstd_2, &dx, rows);
        // forward: x_mid = x + dropout(attention(a c_attn) attn_proj), a = norm(x, ln_1)
        Floats da;
        {
            const Floats a = normed_again(kept.x, p.ln_1, kept.mean_1, kept.rstd_1, rows);
            const Floats dout = linear_backward(dropped(ATTENTION), kept.out, p.attn_proj, rows, C, C);
            Floats dqkv(rows * 3 * C);
            attention_backward(dqkv.data, dout.data, kept.qkv.data, kept.out.data, kept.lse.data, nullptr, heads,
                               scale);
            da = linear_backward(dqkv, a, p.c_attn, rows, 3 * C, C);
        }
        dx = norm_backward(da, kept.x, p.ln_1, kept.mean_1, kept.rstd_1, &dx, rows);
    }
    // forward: x = dropout(wte[ids] + wpe[positions])
    drop(pass, dx, 0, EMBEDDING);
    embedding_backward(grads.data + wte.weight, grads.data + wpe.weight, dx.data, pass.batch.x.data(),
                       pass.positions.data(), rows, C);
}

// Where less than half of the targets count, those alone are computed.
double Gpt2::head(const Pass& pass, const Floats& x, Floats* dx) {
    const Index C = shape.n_embd, V = shape.vocab_size, rows = pass.rows, counted = pass.batch.counted();
    const float* const w = at(wte.weight);
    float* const dw = dx ? grads.data + wte.weight : nullptr;
    const std::vector<int32_t>& y = pass.batch.y;
    if (dx) *dx = Floats(rows * C);
    if (2 * counted >= rows)
        return head_cross_entropy(dx ? dx->data : nullptr, dw, x.data, w, y.data(), nullptr, rows, V, C);
    Floats some(counted * C), dsome(dx ? counted * C : 0);
    std::vector<int32_t> targets;
    for (Index i = 0; i < rows; i++) {
        if (y[size_t(i)] < 0) continue;
        std::memcpy(some.data + Index(targets.size()) * C, x.data + i * C, size_t(C) * sizeof(float));
        targets.push_back(y[size_t(i)]);
    }
    const double loss =
        head_cross_entropy(dx ? dsome.data : nullptr, dw, some.data, w, targets.data(), nullptr, counted, V, C);
    const float* from = dsome.data;
    for (Index i = 0; dx && i < rows; i++) {
        float* const to = dx->data + i * C;
        if (y[size_t(i)] < 0) {
            std::fill(to, to + C, 0.0f);
        } else {
            std::memcpy(to, from, size_t(C) * sizeof(float));
            from += C;
        }
    }
    return loss;
}

Floats Gpt2::normed(const Floats& x, const Place& norm, Floats& mean, Floats& rstd, Index rows) const {
    const Index C = shape.n_embd;
    Floats y(rows * C);
    mean = Floats(rows), rstd = Floats(rows);
    layernorm_forward(y.data, mean.data, rstd.data, x.data, at(norm.weight), at(norm.bias), rows, C, EPSILON);
    return y;
}

Floats Gpt2::normed_again(const Floats& x, const Place& norm, const Floats& mean, const Floats& rstd,
                          Index rows) const {
    Floats y(rows * shape.n_embd);
    layernorm_apply(y.data, x.data, mean.data, rstd.data, at(norm.weight), at(norm.bias), rows, shape.n_embd);
    return y;
}

Floats Gpt2::norm_backward(const Floats& dy, const Floats& x, const Place& norm, const Floats& mean, const Floats& rstd,
                           const Floats* residual, Index rows) {
    Floats dx(rows * shape.n_embd);
    layernorm_backward(dx.data, grads.data + norm.weight, grads.data + norm.bias, dy.data, x.data, mean.data, rstd.data,
                       at(norm.weight), residual ? residual->data : nullptr, rows, shape.n_embd);
    return dx;
}

Floats Gpt2::linear_backward(const Floats& dy, const Floats& x, const Place& linear, Index rows, Index N, Index K) {
    Floats dx(rows * K);
    npgpt::linear_backward(dx.data, grads.data + linear.weight, grads.data + linear.bias, dy.data, x.data,
                           at(linear.weight), rows, N, K);
    return dx;
}

// x + dropout(y proj); without dropout the product does the sum
Floats Gpt2::projected(const Pass& pass, const Floats& y, const Place& proj, const Floats& x, Index layer,
                       uint32_t place, Index K) const {
    const Index C = shape.n_embd, rows = pass.rows;
    const bool drops = pass.step && shape.dropout;
    Epilogue epilogue;
    epilogue.bias = at(proj.bias);
    if (!drops) epilogue.residual = x.data;
    Floats z(rows * C);
    matmul(z.data, C, {y.data, K, 1}, {at(proj.weight), C, 1}, rows, C, K, false, &epilogue);
    if (!drops) return z;
    drop(pass, z, layer, place);
    for (Index i = 0; i < rows * C; i++) z.data[i] = x.data[i] + z.data[i];
    return z;
}

void Gpt2::drop(const Pass& pass, Floats& x, Index layer, uint32_t place) const {
    if (!pass.step || !shape.dropout) return;
    const uint32_t key[] = {shape.seed, uint32_t(pass.step), uint32_t(layer), place};
    dropout(x.data, x.data, key, 0, shape.dropout, pass.batch.rows, pass.batch.T * shape.n_embd);
}

}  // namespace npgpt
