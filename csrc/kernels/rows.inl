// Operations on rows (rows,C): layernorm, RMSNorm, softmax, cross-entropy. A row is read from cache two or three times; each sum
// over a row runs in one fixed order, so a row's result never depends on its neighbours.

namespace npgpt {
namespace NPGPT_ISA {

NPGPT_INLINE void normalise_row(float* y, const float* x, float mean, float rstd, const float* w, const float* b,
                                Index C) {
    const Vec vm = set1(mean), vr = set1(rstd);
    Index c = 0;
    for (; c + VLEN <= C; c += VLEN) {
        Vec norm = (load(x + c) - vm) * vr;
        store(y + c, b ? fma(norm, load(w + c), load(b + c)) : norm * load(w + c));
    }
    for (; c < C; c++) y[c] = (x[c] - mean) * rstd * w[c] + (b ? b[c] : 0);
}

static void layernorm_apply(float* y, const float* x, const float* mean, const float* rstd, const float* w,
                            const float* b, Index rows, Index C) {
    for (Index i = 0; i < rows; i++) normalise_row(y + i * C, x + i * C, mean[i], rstd[i], w, b, C);
}

static void layernorm_forward(float* y, float* mean, float* rstd, const float* x, const float* w, const float* b,
                              Index rows, Index C, float eps) {
    for (Index i = 0; i < rows; i++, x += C, y += C) {
        Vec sum = Vec{};
        Index c = 0;
        for (; c + VLEN <= C; c += VLEN) sum += load(x + c);
        float rest = 0;
        for (; c < C; c++) rest += x[c];
        const float m = (reduce_add(sum) + rest) / C;
        Vec squares = Vec{}, vm = set1(m);
        for (c = 0; c + VLEN <= C; c += VLEN) {
            Vec centred = load(x + c) - vm;
            squares = fma(centred, centred, squares);
        }
        for (rest = 0; c < C; c++) rest += (x[c] - m) * (x[c] - m);
        const float r = 1 / __builtin_sqrtf((reduce_add(squares) + rest) / C + eps);
        normalise_row(y, x, m, r, w, b, C);
        mean[i] = m;
        rstd[i] = r;
    }
}

static void layernorm_backward(float* dx, float* dw, float* db, const float* dy, const float* x, const float* mean,
                               const float* rstd, const float* w, const float* residual, Index rows, Index C) {
    for (Index c = 0; c < C; c++) dw[c] = 0;
    for (Index c = 0; db && c < C; c++) db[c] = 0;
    for (Index i = 0; i < rows; i++, x += C, dy += C, dx += C) {
        const float m = mean[i], r = rstd[i];
        const Vec vm = set1(m), vr = set1(r);
        // forward: y = norm * w + b; both row sums and both parameter sums in one pass
        Vec sum = Vec{}, dot = Vec{};
        Index c = 0;
        for (; c + VLEN <= C; c += VLEN) {
            Vec d = load(dy + c), norm = (load(x + c) - vm) * vr, dnorm = d * load(w + c);
            sum += dnorm;
            dot = fma(dnorm, norm, dot);
            store(dw + c, fma(d, norm, load(dw + c)));
            if (db) store(db + c, load(db + c) + d);
        }
        float sum_rest = 0, dot_rest = 0;
        for (; c < C; c++) {
            float norm = (x[c] - m) * r, dnorm = dy[c] * w[c];
            sum_rest += dnorm;
            dot_rest += dnorm * norm;
            dw[c] += dy[c] * norm;
            if (db) db[c] += dy[c];
        }
        const float mean_dnorm = (reduce_add(sum) + sum_rest) / C, mean_dot = (reduce_add(dot) + dot_rest) / C;
        // forward: norm = (x - mean) * rstd
        const Vec vs = set1(mean_dnorm), vd = set1(mean_dot);
        for (c = 0; c + VLEN <= C; c += VLEN) {
            Vec norm = (load(x + c) - vm) * vr;
            Vec g = (load(dy + c) * load(w + c) - vs - norm * vd) * vr;
            store(dx + c, residual ? load(residual + c) + g : g);
        }
        for (; c < C; c++) {
            float norm = (x[c] - m) * r;
            float g = (dy[c] * w[c] - mean_dnorm - norm * mean_dot) * r;
            dx[c] = residual ? residual[c] + g : g;
        }
        if (residual) residual += C;
    }
}

NPGPT_INLINE void scale_row(float* y, const float* x, float rstd, const float* w, Index C) {
    const Vec vr = set1(rstd);
    Index c = 0;
    for (; c + VLEN <= C; c += VLEN) store(y + c, load(x + c) * vr * load(w + c));
    for (; c < C; c++) y[c] = x[c] * rstd * w[c];
}

static void rmsnorm_apply(float* y, const float* x, const float* rstd, const float* w, Index rows, Index C) {
    for (Index i = 0; i < rows; i++) scale_row(y + i * C, x + i * C, rstd[i], w, C);
}

static void rmsnorm_forward(float* y, float* rstd, const float* x, const float* w, Index rows, Index C, float eps) {
    for (Index i = 0; i < rows; i++, x += C, y += C) {
        Vec squares = Vec{};
        Index c = 0;
        for (; c + VLEN <= C; c += VLEN) squares = fma(load(x + c), load(x + c), squares);
        float rest = 0;
        for (; c < C; c++) rest += x[c] * x[c];
        rstd[i] = 1 / __builtin_sqrtf((reduce_add(squares) + rest) / C + eps);
        scale_row(y, x, rstd[i], w, C);
    }
}

static void rmsnorm_backward(float* dx, float* dw, const float* dy, const float* x, const float* rstd, const float* w,
                             const float* residual, Index rows, Index C) {
    for (Index c = 0; c < C; c++) dw[c] = 0;
    for (Index i = 0; i < rows; i++, x += C, dy += C, dx += C) {
        const float r = rstd[i];
        const Vec vr = set1(r);
        // forward: y = norm * w; the row sum and the parameter sum in one pass
        Vec dot = Vec{};
        Index c = 0;
        for (; c + VLEN <= C; c += VLEN) {
            Vec d = load(dy + c), norm = load(x + c) * vr;
            dot = fma(d * load(w + c), norm, dot);
            store(dw + c, fma(d, norm, load(dw + c)));
        }
        float rest = 0;
        for (; c < C; c++) {
            const float norm = x[c] * r;
            rest += dy[c] * w[c] * norm;
            dw[c] += dy[c] * norm;
        }
        const float mean_dot = (reduce_add(dot) + rest) / C;
        // forward: norm = x * rstd
        const Vec vd = set1(mean_dot);
        for (c = 0; c + VLEN <= C; c += VLEN) {
            Vec g = (load(dy + c) * load(w + c) - load(x + c) * vr * vd) * vr;
            store(dx + c, residual ? load(residual + c) + g : g);
        }
        for (; c < C; c++) {
            const float g = (dy[c] * w[c] - x[c] * r * mean_dot) * r;
            dx[c] = residual ? residual[c] + g : g;
        }
        if (residual) residual += C;
    }
}

NPGPT_INLINE float row_max(const float* x, Index N) {
    Vec top = set1(-__builtin_inff());
    Index j = 0;
    for (; j + VLEN <= N; j += VLEN) top = vmax(load(x + j), top);
    float result = reduce_max(top);
    for (; j < N; j++) result = x[j] > result ? x[j] : result;
    return result;
}

// y = e^(x - shift); returns the sum
static __attribute__((noinline)) float row_exp(float* y, const float* x, Index N, float shift) {
    Vec sum = Vec{}, vs = set1(shift);
    Index j = 0;
    for (; j + VLEN <= N; j += VLEN) {
        Vec e = vexp(load(x + j) - vs);
        store(y + j, e);
        sum += e;
    }
    float total = reduce_add(sum);
    if (j < N) {
        Vec e = vexp(load_part(x + j, N - j) - vs);
        store_part(y + j, e, N - j);
        for (Index i = 0; i < N - j; i++) total += e[i];
    }
    return total;
}

NPGPT_INLINE void row_scale(float* y, const float* x, Index N, float factor) {
    Vec vf = set1(factor);
    Index j = 0;
    for (; j + VLEN <= N; j += VLEN) store(y + j, load(x + j) * vf);
    for (; j < N; j++) y[j] = x[j] * factor;
}

static void softmax_forward(float* y, const float* x, Index rows, Index N) {
    for (Index i = 0; i < rows; i++, x += N, y += N) row_scale(y, y, N, 1 / row_exp(y, x, N, row_max(x, N)));
}

static void softmax_backward(float* dx, const float* dy, const float* y, Index rows, Index N) {
    for (Index i = 0; i < rows; i++, dx += N, dy += N, y += N) {
        Vec dot = Vec{};
        Index j = 0;
        for (; j + VLEN <= N; j += VLEN) dot = fma(load(dy + j), load(y + j), dot);
        float total = reduce_add(dot);
        for (; j < N; j++) total += dy[j] * y[j];
        Vec vt = set1(total);
        for (j = 0; j + VLEN <= N; j += VLEN) store(dx + j, load(y + j) * (load(dy + j) - vt));
        for (; j < N; j++) dx[j] = y[j] * (dy[j] - total);
    }
}

static void cross_entropy(float* logits, float* losses, const int32_t* targets, Index rows, Index V, float grad_scale) {
    for (Index i = 0; i < rows; i++, logits += V) {
        if (targets[i] < 0) {
            losses[i] = 0;
            for (Index j = 0; j < V; j++) logits[j] = 0;
            continue;
        }
        const float top = row_max(logits, V), target = logits[targets[i]];
        const float total = row_exp(logits, logits, V, top);
        losses[i] = top + __builtin_logf(total) - target;
        if (grad_scale == 0) continue;  // the loss alone is asked for
        row_scale(logits, logits, V, grad_scale / total);
        logits[targets[i]] -= grad_scale;
    }
}

}  // namespace NPGPT_ISA
}  // namespace npgpt
