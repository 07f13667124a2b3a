// The only file that knows Python: check the arguments, release the GIL, call, return.
//
// Outputs come first. Every array must be a C-contiguous float32 (ids: int32) ndarray of the right shape; anything else is
// refused by name, and nothing is ever copied or converted. Leading dimensions are free: (...,C) means any number of rows.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "../memory/blocks.h"
#include "../parallel/ops.h"
#include "../threads/pool.h"

namespace py = pybind11;
using namespace npgpt;
using Optional = std::optional<py::array>;

namespace {

// ---- checks. Messages read: {function}: {argument} must be {what}, got {value}

struct Argument {
    const char* function;
    const char* name;
    [[noreturn]] void wrong_type(const std::string& what, const std::string& got) const {
        throw py::type_error(text(what, got));
    }
    [[noreturn]] void wrong_value(const std::string& what, const std::string& got) const {
        throw py::value_error(text(what, got));
    }
    std::string text(const std::string& what, const std::string& got) const {
        return std::string(function) + ": " + name + " must be " + what + ", got " + got;
    }
};

std::string shape_text(const std::vector<Index>& shape) {
    std::ostringstream out;
    out << "(";
    for (size_t i = 0; i < shape.size(); i++) out << (i ? ", " : "") << shape[i];
    out << (shape.size() == 1 ? ",)" : ")");
    return out.str();
}

std::vector<Index> shape_of(const py::array& array) { return {array.shape(), array.shape() + array.ndim()}; }

void check_array(Argument arg, const py::array& array, const py::dtype& dtype, const char* dtype_name) {
    if (!array.dtype().is(dtype) && !array.dtype().equal(dtype))
        arg.wrong_type(dtype_name, std::string(py::str(array.dtype())));
    if (!(array.flags() & py::array::c_style))
        arg.wrong_value("C-contiguous", "strides " + shape_text({array.strides(), array.strides() + array.ndim()}));
    if (reinterpret_cast<uintptr_t>(array.data()) % 4) arg.wrong_value("aligned to 4 bytes", "a misaligned array");
}

void check_shape(Argument arg, const py::array& array, const std::vector<Index>& shape) {
    if (shape_of(array) != shape) arg.wrong_value("of shape " + shape_text(shape), shape_text(shape_of(array)));
}

const float* input(Argument arg, const py::array& array, const std::vector<Index>& shape) {
    check_array(arg, array, py::dtype::of<float>(), "float32");
    check_shape(arg, array, shape);
    return static_cast<const float*>(array.data());
}
const float* input(Argument arg, const Optional& array, const std::vector<Index>& shape) {
    return array ? input(arg, *array, shape) : nullptr;
}

float* output(Argument arg, py::array& array, const std::vector<Index>& shape) {
    check_array(arg, array, py::dtype::of<float>(), "float32");
    check_shape(arg, array, shape);
    if (!array.writeable()) arg.wrong_value("writeable", "a read-only array");
    return static_cast<float*>(array.mutable_data());
}
float* output(Argument arg, Optional& array, const std::vector<Index>& shape) {
    return array ? output(arg, *array, shape) : nullptr;
}

// int32 with every element in [low, high)
const int32_t* ids_input(Argument arg, const py::array& array, const std::vector<Index>& shape, Index low,
                         Index high) {
    check_array(arg, array, py::dtype::of<int32_t>(), "int32");
    check_shape(arg, array, shape);
    const int32_t* ids = static_cast<const int32_t*>(array.data());
    for (Index i = 0; i < array.size(); i++)
        if (ids[i] < low || ids[i] >= high)
            arg.wrong_value("in [" + std::to_string(low) + ", " + std::to_string(high) + ")", std::to_string(ids[i]));
    return ids;
}

void check_ndim(Argument arg, const py::array& array, Index ndim) {
    if (array.ndim() != ndim) arg.wrong_value(std::to_string(ndim) + "-dimensional", shape_text(shape_of(array)));
}

// Shape of an array (...,last): refuses a scalar
std::vector<Index> rows_shape(Argument arg, const py::array& array) {
    if (array.ndim() < 1) arg.wrong_value("at least 1-dimensional", "a scalar");
    return shape_of(array);
}
Index rows_of(const std::vector<Index>& shape) {
    Index rows = 1;
    for (size_t i = 0; i + 1 < shape.size(); i++) rows *= shape[i];
    return rows;
}
std::vector<Index> with_last(std::vector<Index> shape, Index last) {
    shape.back() = last;
    return shape;
}

struct Free {  // the GIL, for the length of a scope
    py::gil_scoped_release release;
};

// ---- ops, in the order of npgpt/engine/ops.py, which documents them

void py_embedding_forward(py::array x, const py::array& ids, const py::array& positions, const py::array& wte,
                          const py::array& wpe) {
    const char* f = "embedding_forward";
    check_ndim({f, "wte"}, wte, 2), check_ndim({f, "wpe"}, wpe, 2);
    const Index C = wte.shape(1);
    std::vector<Index> shape = shape_of(ids), x_shape = shape;
    x_shape.push_back(C);
    const float *w = input({f, "wte"}, wte, {wte.shape(0), C}), *p = input({f, "wpe"}, wpe, {wpe.shape(0), C});
    const int32_t* i = ids_input({f, "ids"}, ids, shape, 0, wte.shape(0));
    const int32_t* t = ids_input({f, "positions"}, positions, shape, 0, wpe.shape(0));
    float* out = output({f, "x"}, x, x_shape);
    Free free;
    embedding_forward(out, i, t, w, p, rows_of(x_shape), C);
}

void py_embedding_backward(const py::array& dx, const py::array& ids, const py::array& positions, py::array dwte,
                           py::array dwpe) {
    const char* f = "embedding_backward";
    check_ndim({f, "dwte"}, dwte, 2), check_ndim({f, "dwpe"}, dwpe, 2);
    const Index C = dwte.shape(1);
    std::vector<Index> shape = shape_of(ids), x_shape = shape;
    x_shape.push_back(C);
    const float* d = input({f, "dx"}, dx, x_shape);
    const int32_t* i = ids_input({f, "ids"}, ids, shape, 0, dwte.shape(0));
    const int32_t* t = ids_input({f, "positions"}, positions, shape, 0, dwpe.shape(0));
    float *w = output({f, "dwte"}, dwte, {dwte.shape(0), C}), *p = output({f, "dwpe"}, dwpe, {dwpe.shape(0), C});
    Free free;
    embedding_backward(w, p, d, i, t, rows_of(x_shape), C);
}

void py_layernorm_forward(py::array y, py::array mean, py::array rstd, const py::array& x, const py::array& w,
                          const Optional& b, float eps) {
    const char* f = "layernorm_forward";
    const auto shape = rows_shape({f, "x"}, x);
    const std::vector<Index> lead(shape.begin(), shape.end() - 1);
    const Index C = shape.back();
    const float *px = input({f, "x"}, x, shape), *pw = input({f, "w"}, w, {C}), *pb = input({f, "b"}, b, {C});
    float *py_ = output({f, "y"}, y, shape), *pm = output({f, "mean"}, mean, lead),
          *pr = output({f, "rstd"}, rstd, lead);
    Free free;
    layernorm_forward(py_, pm, pr, px, pw, pb, rows_of(shape), C, eps);
}

void py_layernorm_backward(py::array dx, const py::array& dy, const py::array& x, const py::array& mean,
                           const py::array& rstd, const py::array& w, py::array dw, Optional db,
                           const Optional& residual) {
    const char* f = "layernorm_backward";
    const auto shape = rows_shape({f, "x"}, x);
    const std::vector<Index> lead(shape.begin(), shape.end() - 1);
    const Index C = shape.back();
    const float *pdy = input({f, "dy"}, dy, shape), *px = input({f, "x"}, x, shape),
                *pm = input({f, "mean"}, mean, lead), *pr = input({f, "rstd"}, rstd, lead),
                *pw = input({f, "w"}, w, {C}), *pres = input({f, "residual"}, residual, shape);
    float *pdw = output({f, "dw"}, dw, {C}), *pdb = output({f, "db"}, db, {C}), *pdx = output({f, "dx"}, dx, shape);
    Free free;
    layernorm_backward(pdx, pdw, pdb, pdy, px, pm, pr, pw, pres, rows_of(shape), C);
}

void py_matmul(py::array out, const py::array& a, const py::array& b, bool trans_a, bool trans_b, bool accumulate) {
    const char* f = "matmul";
    check_ndim({f, "a"}, a, 2), check_ndim({f, "b"}, b, 2);
    const Index M = a.shape(trans_a), K = a.shape(!trans_a), N = b.shape(!trans_b);
    const float* pa = input({f, "a"}, a, shape_of(a));
    const float* pb = input({f, "b"}, b, trans_b ? std::vector<Index>{N, K} : std::vector<Index>{K, N});
    float* po = output({f, "out"}, out, {M, N});
    Free free;
    matmul(po, N, trans_a ? View{pa, 1, M} : View{pa, K, 1}, trans_b ? View{pb, 1, K} : View{pb, N, 1}, M, N, K,
           accumulate);
}

void py_linear_forward(py::array y, Optional h, const py::array& x, const py::array& w, const Optional& b,
                       const Optional& residual) {
    const char* f = h ? "linear_gelu_forward" : "linear_forward";
    check_ndim({f, "w"}, w, 2);
    const Index K = w.shape(0), N = w.shape(1);
    const auto shape = rows_shape({f, "x"}, x), y_shape = with_last(shape, N);
    const float* px = input({f, "x"}, x, with_last(shape, K));
    const float* pw = input({f, "w"}, w, {K, N});
    Epilogue epilogue;
    epilogue.bias = input({f, "b"}, b, {N});
    epilogue.residual = input({f, "residual"}, residual, y_shape);
    epilogue.gelu_input = output({f, "h"}, h, y_shape);
    float* out = output({f, "y"}, y, y_shape);
    Free free;
    matmul(out, N, {px, K, 1}, {pw, N, 1}, rows_of(shape), N, K, false, &epilogue);
}

void py_linear_backward(py::array dx, const py::array& dy, const py::array& x, const py::array& w, py::array dw,
                        Optional db, const Optional& gelu_input) {
    const char* f = "linear_backward";
    check_ndim({f, "w"}, w, 2);
    const Index K = w.shape(0), N = w.shape(1);
    const auto shape = rows_shape({f, "x"}, x);
    const float *pdy = input({f, "dy"}, dy, with_last(shape, N)), *px = input({f, "x"}, x, with_last(shape, K)),
                *pw = input({f, "w"}, w, {K, N}), *ph = input({f, "gelu_input"}, gelu_input, with_last(shape, K));
    float *pdw = output({f, "dw"}, dw, {K, N}), *pdb = output({f, "db"}, db, {N}),
          *pdx = output({f, "dx"}, dx, with_last(shape, K));
    Free free;
    linear_backward(pdx, pdw, pdb, pdy, px, pw, ph, rows_of(shape), N, K);
}

void py_gelu_forward(py::array y, const py::array& x) {
    const char* f = "gelu_forward";
    const float* px = input({f, "x"}, x, shape_of(x));
    float* out = output({f, "y"}, y, shape_of(x));
    const Index n = x.size();
    Free free;
    gelu_forward(out, px, n);
}

void py_gelu_backward(py::array dx, const py::array& dy, const py::array& x) {
    const char* f = "gelu_backward";
    const float *pdy = input({f, "dy"}, dy, shape_of(x)), *px = input({f, "x"}, x, shape_of(x));
    float* out = output({f, "dx"}, dx, shape_of(x));
    const Index n = x.size();
    Free free;
    gelu_backward(out, pdy, px, n);
}

void py_softmax_forward(py::array y, const py::array& x) {
    const char* f = "softmax_forward";
    const auto shape = rows_shape({f, "x"}, x);
    const float* px = input({f, "x"}, x, shape);
    float* out = output({f, "y"}, y, shape);
    Free free;
    softmax_forward(out, px, rows_of(shape), shape.back());
}

void py_softmax_backward(py::array dx, const py::array& dy, const py::array& y) {
    const char* f = "softmax_backward";
    const auto shape = rows_shape({f, "y"}, y);
    const float *pdy = input({f, "dy"}, dy, shape), *py_ = input({f, "y"}, y, shape);
    float* out = output({f, "dx"}, dx, shape);
    Free free;
    softmax_backward(out, pdy, py_, rows_of(shape), shape.back());
}

struct AttentionShape {
    Index B, T, C, H;
};
AttentionShape attention_shape(const char* f, const py::array& qkv, Index n_head, float scale) {
    check_ndim({f, "qkv"}, qkv, 3);
    const Index C3 = qkv.shape(2);
    if (n_head < 1 || C3 % (3 * n_head))
        Argument{f, "n_head"}.wrong_value("a divisor of the channels " + std::to_string(C3 / 3), std::to_string(n_head));
    if (!(scale > 0)) Argument{f, "scale"}.wrong_value("positive", std::to_string(scale));
    return {qkv.shape(0), qkv.shape(1), C3 / 3, n_head};
}
const int32_t* first_key_input(const char* f, const Optional& first_key, const AttentionShape& s) {
    if (!first_key) return nullptr;
    const int32_t* keys = ids_input({f, "first_key"}, *first_key, {s.B, s.T}, 0, s.T);
    for (Index i = 0; i < s.B * s.T; i++)
        if (keys[i] > i % s.T)
            Argument{f, "first_key"}.wrong_value("at most its own time " + std::to_string(i % s.T),
                                                 std::to_string(keys[i]));
    return keys;
}

void py_attention_forward(py::array out, py::array lse, const py::array& qkv, Index n_head, float scale,
                          const Optional& first_key) {
    const char* f = "attention_forward";
    const AttentionShape s = attention_shape(f, qkv, n_head, scale);
    const float* p = input({f, "qkv"}, qkv, {s.B, s.T, 3 * s.C});
    const int32_t* keys = first_key_input(f, first_key, s);
    float *po = output({f, "out"}, out, {s.B, s.T, s.C}), *pl = output({f, "lse"}, lse, {s.B, s.H, s.T});
    Free free;
    attention_forward(po, pl, p, keys, s.B, s.T, s.C, s.H, scale);
}

void py_attention_backward(py::array dqkv, const py::array& dout, const py::array& qkv, const py::array& out,
                           const py::array& lse, Index n_head, float scale, const Optional& first_key) {
    const char* f = "attention_backward";
    const AttentionShape s = attention_shape(f, qkv, n_head, scale);
    const float *pd = input({f, "dout"}, dout, {s.B, s.T, s.C}), *p = input({f, "qkv"}, qkv, {s.B, s.T, 3 * s.C}),
                *po = input({f, "out"}, out, {s.B, s.T, s.C}), *pl = input({f, "lse"}, lse, {s.B, s.H, s.T});
    const int32_t* keys = first_key_input(f, first_key, s);
    float* result = output({f, "dqkv"}, dqkv, {s.B, s.T, 3 * s.C});
    Free free;
    attention_backward(result, pd, p, po, pl, keys, s.B, s.T, s.C, s.H, scale);
}

double py_head_cross_entropy_forward(py::array dlogits, const py::array& x, const py::array& wte,
                                     const py::array& targets) {
    const char* f = "head_cross_entropy_forward";
    check_ndim({f, "wte"}, wte, 2);
    const Index V = wte.shape(0), C = wte.shape(1);
    const auto shape = rows_shape({f, "x"}, x);
    const Index rows = rows_of(shape);
    const float *px = input({f, "x"}, x, with_last(shape, C)), *pw = input({f, "wte"}, wte, {V, C});
    const int32_t* pt = ids_input({f, "targets"}, targets, {shape.begin(), shape.end() - 1}, INT32_MIN, V);
    float* logits = output({f, "dlogits"}, dlogits, {rows, V});
    Free free;
    matmul(logits, V, {px, C, 1}, {pw, 1, C}, rows, V, C, false);
    return cross_entropy(logits, pt, rows, V);
}

void py_dropout(py::array y, const py::array& x, double p, const py::tuple& key, uint32_t first_sample) {
    const char* f = "dropout_forward";
    const auto shape = rows_shape({f, "x"}, x);
    if (!(p >= 0 && p < 1)) Argument{f, "p"}.wrong_value("in [0, 1)", std::to_string(p));
    if (key.size() != 4) Argument{f, "key"}.wrong_value("(seed, step, layer, place)", std::string(py::str(key)));
    uint32_t words[4];
    for (int i = 0; i < 4; i++)  // like the reference: the low 32 bits
        words[i] = py::cast<uint32_t>(py::int_(key[i]) & py::int_(0xFFFFFFFFu));
    const float* px = input({f, "x"}, x, shape);
    float* out = output({f, "y"}, y, shape);
    const Index B = shape[0], size = B ? x.size() / B : 0;
    Free free;
    dropout(out, px, words, first_sample, p, B, size);
}

double py_global_norm(const py::array& g) {
    check_ndim({"global_norm", "g"}, g, 1);
    const float* p = input({"global_norm", "g"}, g, shape_of(g));
    const Index n = g.size();
    Free free;
    return global_norm(p, n);
}

void py_adamw_step(py::array p, py::array g, py::array m, py::array v, Index n_decay, double lr, double beta1,
                   double beta2, double eps, double weight_decay, int64_t step, double grad_scale) {
    const char* f = "adamw_step";
    check_ndim({f, "p"}, p, 1);
    const std::vector<Index> shape = shape_of(p);
    if (n_decay < 0 || n_decay > shape[0])
        Argument{f, "n_decay"}.wrong_value("in [0, " + std::to_string(shape[0]) + "]", std::to_string(n_decay));
    if (step < 1) Argument{f, "step"}.wrong_value("at least 1", std::to_string(step));
    float *pp = output({f, "p"}, p, shape), *pg = output({f, "g"}, g, shape), *pm = output({f, "m"}, m, shape),
          *pv = output({f, "v"}, v, shape);
    AdamW settings = {float(lr), float(beta1), float(beta2), float(eps), float(lr * weight_decay),
                      float(1 - std::pow(beta1, double(step))), float(std::sqrt(1 - std::pow(beta2, double(step)))),
                      float(grad_scale)};
    Free free;
    adamw_step(pp, pg, pm, pv, shape[0], n_decay, settings);
}

// ---- memory, threads, choice of kernels

py::array py_empty(const std::vector<Index>& shape) {
    size_t floats = 1;
    for (Index n : shape) {
        if (n < 0) Argument{"empty", "shape"}.wrong_value("non-negative", shape_text(shape));
        floats *= size_t(n);
    }
    struct Kept {
        float* block;
        size_t floats;
    };
    Kept* kept = new Kept{take_block(floats), floats};
    py::capsule owner(kept, [](void* p) {
        Kept* k = static_cast<Kept*>(p);
        give_block(k->block, k->floats);
        delete k;
    });
    return py::array_t<float>(shape, kept->block, owner);
}

std::vector<std::string> py_available() {
    int count;
    const Kernels* const* tables = available_kernels(&count);
    std::vector<std::string> names;
    for (int i = 0; i < count; i++) names.push_back(tables[i]->name);
    return names;
}

void py_use(const std::string& name) {
    const Kernels* kernels = find_kernels(name.c_str());
    if (!kernels) throw py::value_error("use: no kernels named " + name + " for this CPU");
    set_active_kernels(kernels);
}

void py_set_num_threads(int n) {
    if (n < 1) Argument{"set_num_threads", "n"}.wrong_value("at least 1", std::to_string(n));
    Free free;
    set_num_threads(n);
}

double py_probe(double (*probe)(double), double seconds) {
    Free free;
    return probe(seconds);
}

}  // namespace

PYBIND11_MODULE(_kernels, m) {
    m.doc() = "Compiled kernels. The ops are those of npgpt.engine.ops, outputs first; npgpt.engine.kernels calls them.";
    m.attr("__version__") = NPGPT_VERSION;

    m.def("embedding_forward", py_embedding_forward);
    m.def("embedding_backward", py_embedding_backward);
    m.def("layernorm_forward", py_layernorm_forward);
    m.def("layernorm_backward", py_layernorm_backward);
    m.def("matmul", py_matmul);
    m.def("linear_forward", py_linear_forward);
    m.def("linear_backward", py_linear_backward);
    m.def("gelu_forward", py_gelu_forward);
    m.def("gelu_backward", py_gelu_backward);
    m.def("softmax_forward", py_softmax_forward);
    m.def("softmax_backward", py_softmax_backward);
    m.def("attention_forward", py_attention_forward);
    m.def("attention_backward", py_attention_backward);
    m.def("head_cross_entropy_forward", py_head_cross_entropy_forward);
    m.def("dropout", py_dropout);
    m.def("global_norm", py_global_norm);
    m.def("adamw_step", py_adamw_step);

    m.def("empty", py_empty, "An uninitialised float32 array from the block store.");
    m.def("release_blocks", release_blocks, "Hands the memory kept for reuse back to the system.");
    m.def("available", py_available, "Names of the kernels compiled in that this CPU can run, plainest first.");
    m.def("use", py_use, "Chooses kernels by name, or auto for the best.");
    m.def("name", [] { return std::string(active_kernels().name); }, "The kernels in use.");
    m.def("num_threads", num_threads);
    m.def("set_num_threads", py_set_num_threads);
    m.def("peak_gflops", [](double s) { return py_probe(peak_gflops, s); }, "Multiply-adds of this machine, GFLOP/s.");
    m.def("read_bandwidth", [](double s) { return py_probe(read_bandwidth, s); }, "Reads from memory, GB/s.");
    m.def("usable_cpus", usable_cpus, "CPUs this process may use: affinity and cgroup quota.");
}
