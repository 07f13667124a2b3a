// The one folder that knows Python: check the arguments, release the GIL, call, return.
//
// Each op has the signature of its reference in npgpt/engine/ops.py and returns new arrays from the block store. Every
// argument must be a C-contiguous float32 (ids: int32) ndarray of the right shape; anything else is refused by name, and
// nothing is ever copied or converted. Leading dimensions are free: (...,C) means any number of rows. The rows of matmul's a
// and out may lie apart, as columns of a wider array do.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "../memory/blocks.h"
#include "../parallel/ops.h"
#include "../threads/pool.h"

namespace py = pybind11;
using namespace npgpt;
using namespace py::literals;
using Optional = std::optional<py::array>;

#include "text.inl"

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
    std::string out = "(";  // a stream would bring half a megabyte of the C++ library into a wheel
    for (size_t i = 0; i < shape.size(); i++) out += (i ? ", " : "") + std::to_string(shape[i]);
    return out + (shape.size() == 1 ? ",)" : ")");
}

std::vector<Index> shape_of(const py::array& array) { return {array.shape(), array.shape() + array.ndim()}; }

void check_array(Argument arg, const py::array& array, const py::dtype& dtype, const char* dtype_name,
                 bool rows_apart = false) {
    if (!array.dtype().is(dtype) && !array.dtype().equal(dtype))
        arg.wrong_type(dtype_name, std::string(py::str(array.dtype())));
    if (!rows_apart && !(array.flags() & py::array::c_style))
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

// Floats from one row (...,N) of a matrix to the next, whose rows may lie apart
Index row_stride(Argument arg, const py::array& matrix) {
    check_array(arg, matrix, py::dtype::of<float>(), "float32", true);
    const Index rows = matrix.shape(0), columns = matrix.shape(1);
    if (rows == 0 || columns == 0) return columns;
    const Index stride = rows < 2 ? columns : matrix.strides(0) / 4;
    if ((columns > 1 && matrix.strides(1) != 4) || stride < columns || (rows > 1 && matrix.strides(0) % 4))
        arg.wrong_value("of C-contiguous rows", "strides " + shape_text({matrix.strides(), matrix.strides() + 2}));
    return stride;
}

float* output(Argument arg, py::array& array, const std::vector<Index>& shape, bool rows_apart = false) {
    check_array(arg, array, py::dtype::of<float>(), "float32", rows_apart);
    check_shape(arg, array, shape);
    if (!array.writeable()) arg.wrong_value("writeable", "a read-only array");
    return static_cast<float*>(array.mutable_data());
}
float* output(Argument arg, Optional& array, const std::vector<Index>& shape) {
    return array ? output(arg, *array, shape) : nullptr;
}

// int32 with every element in [low, high)
const int32_t* ids_input(Argument arg, const py::array& array, const std::vector<Index>& shape, Index low, Index high) {
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
std::vector<Index> without_last(const std::vector<Index>& shape) { return {shape.begin(), shape.end() - 1}; }
std::vector<Index> with_last(std::vector<Index> shape, Index last) {
    shape.back() = last;
    return shape;
}

// A new array of the block store, and where its floats are.
struct New {
    explicit New(const std::vector<Index>& shape) : array(make(shape)), data(array.mutable_data()) {}
    static py::array_t<float> make(const std::vector<Index>& shape) {
        size_t floats = 1;
        for (Index n : shape) floats *= size_t(n);
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
    py::array_t<float> array;
    float* data;
};

template <class Call>
auto without_gil(Call&& call) {
    py::gil_scoped_release release;
    return call();
}

// ---- ops, in the order of npgpt/engine/ops.py, which documents them

py::array py_embedding_forward(const py::array& ids, const py::array& positions, const py::array& wte,
                               const Optional& wpe) {
    const char* f = "embedding_forward";
    check_ndim({f, "wte"}, wte, 2);
    if (wpe) check_ndim({f, "wpe"}, *wpe, 2);
    const Index C = wte.shape(1), P = wpe ? wpe->shape(0) : INT32_MAX;
    std::vector<Index> shape = shape_of(ids), x_shape = shape;
    x_shape.push_back(C);
    const float *w = input({f, "wte"}, wte, {wte.shape(0), C}), *p = input({f, "wpe"}, wpe, {P, C});
    const int32_t* i = ids_input({f, "ids"}, ids, shape, 0, wte.shape(0));
    const int32_t* t = ids_input({f, "positions"}, positions, shape, 0, P);
    New x(x_shape);
    without_gil([&] { embedding_forward(x.data, i, t, w, p, rows_of(x_shape), C); });
    return x.array;
}

void py_embedding_backward(const py::array& dx, const py::array& ids, const py::array& positions, py::array dwte,
                           Optional dwpe) {
    const char* f = "embedding_backward";
    check_ndim({f, "dwte"}, dwte, 2);
    if (dwpe) check_ndim({f, "dwpe"}, *dwpe, 2);
    const Index C = dwte.shape(1), P = dwpe ? dwpe->shape(0) : INT32_MAX;
    std::vector<Index> shape = shape_of(ids), x_shape = shape;
    x_shape.push_back(C);
    const float* d = input({f, "dx"}, dx, x_shape);
    const int32_t* i = ids_input({f, "ids"}, ids, shape, 0, dwte.shape(0));
    const int32_t* t = ids_input({f, "positions"}, positions, shape, 0, P);
    float *w = output({f, "dwte"}, dwte, {dwte.shape(0), C}), *p = output({f, "dwpe"}, dwpe, {P, C});
    without_gil([&] { embedding_backward(w, p, d, i, t, rows_of(x_shape), C); });
}

py::tuple py_layernorm_forward(const py::array& x, const py::array& w, const Optional& b, float eps) {
    const char* f = "layernorm_forward";
    const auto shape = rows_shape({f, "x"}, x), lead = without_last(shape);
    const Index C = shape.back();
    const float *px = input({f, "x"}, x, shape), *pw = input({f, "w"}, w, {C}), *pb = input({f, "b"}, b, {C});
    New y(shape), mean(lead), rstd(lead);
    without_gil([&] { layernorm_forward(y.data, mean.data, rstd.data, px, pw, pb, rows_of(shape), C, eps); });
    return py::make_tuple(y.array, mean.array, rstd.array);
}

py::array py_layernorm_apply(const py::array& x, const py::array& mean, const py::array& rstd, const py::array& w,
                             const Optional& b) {
    const char* f = "layernorm_apply";
    const auto shape = rows_shape({f, "x"}, x), lead = without_last(shape);
    const Index C = shape.back();
    const float *px = input({f, "x"}, x, shape), *pm = input({f, "mean"}, mean, lead),
                *pr = input({f, "rstd"}, rstd, lead), *pw = input({f, "w"}, w, {C}), *pb = input({f, "b"}, b, {C});
    New y(shape);
    without_gil([&] { layernorm_apply(y.data, px, pm, pr, pw, pb, rows_of(shape), C); });
    return y.array;
}

py::array py_layernorm_backward(const py::array& dy, const py::array& x, const py::array& mean, const py::array& rstd,
                                const py::array& w, py::array dw, Optional db, const Optional& residual) {
    const char* f = "layernorm_backward";
    const auto shape = rows_shape({f, "x"}, x), lead = without_last(shape);
    const Index C = shape.back();
    const float *pdy = input({f, "dy"}, dy, shape), *px = input({f, "x"}, x, shape),
                *pm = input({f, "mean"}, mean, lead), *pr = input({f, "rstd"}, rstd, lead),
                *pw = input({f, "w"}, w, {C}), *pres = input({f, "residual"}, residual, shape);
    float *pdw = output({f, "dw"}, dw, {C}), *pdb = output({f, "db"}, db, {C});
    New dx(shape);
    without_gil([&] { layernorm_backward(dx.data, pdw, pdb, pdy, px, pm, pr, pw, pres, rows_of(shape), C); });
    return dx.array;
}

py::tuple py_rmsnorm_forward(const py::array& x, const py::array& w, float eps) {
    const char* f = "rmsnorm_forward";
    const auto shape = rows_shape({f, "x"}, x);
    const Index C = shape.back();
    const float *px = input({f, "x"}, x, shape), *pw = input({f, "w"}, w, {C});
    New y(shape), rstd(without_last(shape));
    without_gil([&] { rmsnorm_forward(y.data, rstd.data, px, pw, rows_of(shape), C, eps); });
    return py::make_tuple(y.array, rstd.array);
}

py::array py_rmsnorm_apply(const py::array& x, const py::array& rstd, const py::array& w) {
    const char* f = "rmsnorm_apply";
    const auto shape = rows_shape({f, "x"}, x);
    const Index C = shape.back();
    const float *px = input({f, "x"}, x, shape), *pr = input({f, "rstd"}, rstd, without_last(shape)),
                *pw = input({f, "w"}, w, {C});
    New y(shape);
    without_gil([&] { rmsnorm_apply(y.data, px, pr, pw, rows_of(shape), C); });
    return y.array;
}

py::array py_rmsnorm_backward(const py::array& dy, const py::array& x, const py::array& rstd, const py::array& w,
                              py::array dw, const Optional& residual) {
    const char* f = "rmsnorm_backward";
    const auto shape = rows_shape({f, "x"}, x);
    const Index C = shape.back();
    const float *pdy = input({f, "dy"}, dy, shape), *px = input({f, "x"}, x, shape),
                *pr = input({f, "rstd"}, rstd, without_last(shape)), *pw = input({f, "w"}, w, {C}),
                *pres = input({f, "residual"}, residual, shape);
    float* pdw = output({f, "dw"}, dw, {C});
    New dx(shape);
    without_gil([&] { rmsnorm_backward(dx.data, pdw, pdy, px, pr, pw, pres, rows_of(shape), C); });
    return dx.array;
}

py::array py_matmul(const py::array& a, const py::array& b, Optional out, bool trans_a, bool trans_b, bool accumulate) {
    const char* f = "matmul";
    check_ndim({f, "a"}, a, 2), check_ndim({f, "b"}, b, 2);
    const Index M = a.shape(trans_a), K = a.shape(!trans_a), N = b.shape(!trans_b), lda = row_stride({f, "a"}, a);
    const float* pa = static_cast<const float*>(a.data());
    const float* pb = input({f, "b"}, b, trans_b ? std::vector<Index>{N, K} : std::vector<Index>{K, N});
    if (!out) {
        if (accumulate) Argument{f, "out"}.wrong_value("an array to accumulate into", "None");
        out = New({M, N}).array;
    }
    float* po = output({f, "out"}, *out, {M, N}, true);
    const Index ldc = row_stride({f, "out"}, *out);
    without_gil([&] {
        matmul(po, ldc, trans_a ? View{pa, 1, lda} : View{pa, lda, 1}, trans_b ? View{pb, 1, K} : View{pb, N, 1}, M, N,
               K, accumulate);
    });
    return *out;
}

struct Linear {  // x (...,K) w (K,N), checked
    Linear(const char* f, const char* name, const py::array& x, const py::array& w) {
        check_ndim({f, "w"}, w, 2);
        K = w.shape(0), N = w.shape(1);
        x_shape = with_last(rows_shape({f, name}, x), K), y_shape = with_last(x_shape, N);
        this->x = input({f, name}, x, x_shape), this->w = input({f, "w"}, w, {K, N});
    }
    Index K, N;
    std::vector<Index> x_shape, y_shape;
    const float *x, *w;
};

py::array py_linear_forward(const py::array& x, const py::array& w, const Optional& b, const Optional& residual) {
    const char* f = "linear_forward";
    const Linear l(f, "x", x, w);
    Epilogue epilogue;
    epilogue.bias = input({f, "b"}, b, {l.N});
    epilogue.residual = input({f, "residual"}, residual, l.y_shape);
    New y(l.y_shape);
    without_gil(
        [&] { matmul(y.data, l.N, {l.x, l.K, 1}, {l.w, l.N, 1}, rows_of(l.x_shape), l.N, l.K, false, &epilogue); });
    return y.array;
}

py::tuple py_linear_gelu_forward(const py::array& x, const py::array& w, const Optional& b) {
    const char* f = "linear_gelu_forward";
    const Linear l(f, "x", x, w);
    Epilogue epilogue;
    epilogue.bias = input({f, "b"}, b, {l.N});
    New y(l.y_shape), h(l.y_shape);
    epilogue.gelu_input = h.data;
    without_gil(
        [&] { matmul(y.data, l.N, {l.x, l.K, 1}, {l.w, l.N, 1}, rows_of(l.x_shape), l.N, l.K, false, &epilogue); });
    return py::make_tuple(y.array, h.array);
}

py::array py_linear_backward(const py::array& dy, const py::array& x, const py::array& w, py::array dw, Optional db) {
    const char* f = "linear_backward";
    const Linear l(f, "x", x, w);
    const float* pdy = input({f, "dy"}, dy, l.y_shape);
    float *pdw = output({f, "dw"}, dw, {l.K, l.N}), *pdb = output({f, "db"}, db, {l.N});
    New dx(l.x_shape);
    without_gil([&] { linear_backward(dx.data, pdw, pdb, pdy, l.x, l.w, rows_of(l.x_shape), l.N, l.K); });
    return dx.array;
}

py::array py_gelu_linear_backward(const py::array& dz, const py::array& h, const py::array& w, py::array dw,
                                  Optional db) {
    const char* f = "gelu_linear_backward";
    const Linear l(f, "h", h, w);
    const float* pdz = input({f, "dz"}, dz, l.y_shape);
    float *pdw = output({f, "dw"}, dw, {l.K, l.N}), *pdb = output({f, "db"}, db, {l.N});
    New dh(l.x_shape);
    without_gil([&] { gelu_linear_backward(dh.data, pdw, pdb, pdz, l.x, l.w, rows_of(l.x_shape), l.N, l.K); });
    return dh.array;
}

// An op on elements, alone or with the gradient of its result.
template <void (*op)(float*, const float*, Index)>
py::array py_elements(const char* f, const py::array& x) {
    const float* px = input({f, "x"}, x, shape_of(x));
    New y(shape_of(x));
    const Index n = x.size();
    without_gil([&] { op(y.data, px, n); });
    return y.array;
}
template <void (*op)(float*, const float*, const float*, Index)>
py::array py_elements_backward(const char* f, const py::array& dy, const py::array& x) {
    const float *pdy = input({f, "dy"}, dy, shape_of(x)), *px = input({f, "x"}, x, shape_of(x));
    New dx(shape_of(x));
    const Index n = x.size();
    without_gil([&] { op(dx.data, pdy, px, n); });
    return dx.array;
}

py::array py_gelu_forward(const py::array& x) { return py_elements<gelu_forward>("gelu_forward", x); }
py::array py_gelu_backward(const py::array& dy, const py::array& x) {
    return py_elements_backward<gelu_backward>("gelu_backward", dy, x);
}
py::array py_erf_gelu_forward(const py::array& x) { return py_elements<erf_gelu_forward>("erf_gelu_forward", x); }
py::array py_erf_gelu_backward(const py::array& dy, const py::array& x) {
    return py_elements_backward<erf_gelu_backward>("erf_gelu_backward", dy, x);
}

std::vector<Index> halved(Argument arg, const std::vector<Index>& shape) {
    if (shape.back() % 2) arg.wrong_value("of shape (..., 2F)", shape_text(shape));
    return with_last(shape, shape.back() / 2);
}

py::array py_swiglu_forward(const py::array& h) {
    const char* f = "swiglu_forward";
    const auto shape = rows_shape({f, "h"}, h), y_shape = halved({f, "h"}, shape);
    const float* ph = input({f, "h"}, h, shape);
    New y(y_shape);
    without_gil([&] { swiglu_forward(y.data, ph, rows_of(shape), y_shape.back()); });
    return y.array;
}

py::array py_swiglu_backward(const py::array& dy, const py::array& h) {
    const char* f = "swiglu_backward";
    const auto shape = rows_shape({f, "h"}, h), y_shape = halved({f, "h"}, shape);
    const float *pdy = input({f, "dy"}, dy, y_shape), *ph = input({f, "h"}, h, shape);
    New dh(shape);
    without_gil([&] { swiglu_backward(dh.data, pdy, ph, rows_of(shape), y_shape.back()); });
    return dh.array;
}

void turn(const char* f, const char* name, py::array& x, const py::array& positions, const py::array& cosine,
          const py::array& sine, Index n_rotated, float direction) {
    check_ndim({f, name}, x, 3), check_ndim({f, "cos"}, cosine, 2);
    const Index B = x.shape(0), T = x.shape(1), N = x.shape(2), P = cosine.shape(0), half = cosine.shape(1);
    float* px = output({f, name}, x, {B, T, N});
    const float *pc = input({f, "cos"}, cosine, {P, half}), *ps = input({f, "sin"}, sine, {P, half});
    const int32_t* pp = ids_input({f, "positions"}, positions, {B, T}, 0, P);
    if (!half || N % (2 * half))
        Argument{f, name}.wrong_value("of heads of " + std::to_string(2 * half), shape_text(shape_of(x)));
    if (n_rotated < 0 || n_rotated > N / (2 * half))
        Argument{f, "n_rotated"}.wrong_value("at most " + std::to_string(N / (2 * half)), std::to_string(n_rotated));
    without_gil([&] { rope(px, pp, pc, ps, B * T, N, n_rotated, half, direction); });
}

void py_rope_forward(py::array qkv, const py::array& positions, const py::array& cosine, const py::array& sine,
                     Index n_rotated) {
    turn("rope_forward", "qkv", qkv, positions, cosine, sine, n_rotated, 1);
}
void py_rope_backward(py::array dqkv, const py::array& positions, const py::array& cosine, const py::array& sine,
                      Index n_rotated) {
    turn("rope_backward", "dqkv", dqkv, positions, cosine, sine, n_rotated, -1);
}

py::array py_softmax_forward(const py::array& x) {
    const char* f = "softmax_forward";
    const auto shape = rows_shape({f, "x"}, x);
    const float* px = input({f, "x"}, x, shape);
    New y(shape);
    without_gil([&] { softmax_forward(y.data, px, rows_of(shape), shape.back()); });
    return y.array;
}

py::array py_softmax_backward(const py::array& dy, const py::array& y) {
    const char* f = "softmax_backward";
    const auto shape = rows_shape({f, "y"}, y);
    const float *pdy = input({f, "dy"}, dy, shape), *py_ = input({f, "y"}, y, shape);
    New dx(shape);
    without_gil([&] { softmax_backward(dx.data, pdy, py_, rows_of(shape), shape.back()); });
    return dx.array;
}

struct Attention : Heads {  // qkv (B,T,(H+2K)D) and what goes with it, checked
    Attention(const char* f, const py::array& qkv, Index n_head, float scale, const Optional& first_key,
              const std::optional<Index>& n_kv_head) {
        check_ndim({f, "qkv"}, qkv, 3);
        B = qkv.shape(0), T = qkv.shape(1), H = n_head, K = n_kv_head.value_or(n_head);
        if (H < 1) Argument{f, "n_head"}.wrong_value("at least 1", std::to_string(H));
        if (K < 1 || H % K)
            Argument{f, "n_kv_head"}.wrong_value("a divisor of " + std::to_string(H), std::to_string(K));
        const Index N = qkv.shape(2);
        D = N / (H + 2 * K);
        if (N != stride())
            Argument{f, "n_head"}.wrong_value(
                "one that splits " + std::to_string(N) + " numbers into heads, with " + std::to_string(K) + " of keys",
                std::to_string(H));
        if (!(scale > 0)) Argument{f, "scale"}.wrong_value("positive", std::to_string(scale));
        data = input({f, "qkv"}, qkv, {B, T, N});
        if (!first_key) return;
        keys = ids_input({f, "first_key"}, *first_key, {B, T}, 0, T);
        for (Index i = 0; i < B * T; i++)
            if (keys[i] > i % T)
                Argument{f, "first_key"}.wrong_value("at most its own time " + std::to_string(i % T),
                                                     std::to_string(keys[i]));
    }
    const float* data;
    const int32_t* keys = nullptr;
};

py::tuple py_attention_forward(const py::array& qkv, Index n_head, float scale, const Optional& first_key,
                               const std::optional<Index>& n_kv_head) {
    const Attention a("attention_forward", qkv, n_head, scale, first_key, n_kv_head);
    New out({a.B, a.T, a.H * a.D}), lse({a.B, a.H, a.T});
    without_gil([&] { attention_forward(out.data, lse.data, a.data, a.keys, a, scale); });
    return py::make_tuple(out.array, lse.array);
}

py::array py_attention_backward(const py::array& dout, const py::array& qkv, const py::array& out, const py::array& lse,
                                Index n_head, float scale, const Optional& first_key,
                                const std::optional<Index>& n_kv_head) {
    const char* f = "attention_backward";
    const Attention a(f, qkv, n_head, scale, first_key, n_kv_head);
    const std::vector<Index> shape = {a.B, a.T, a.H * a.D};
    const float *pd = input({f, "dout"}, dout, shape), *po = input({f, "out"}, out, shape),
                *pl = input({f, "lse"}, lse, {a.B, a.H, a.T});
    New dqkv({a.B, a.T, a.stride()});
    without_gil([&] { attention_backward(dqkv.data, pd, a.data, po, pl, a.keys, a, scale); });
    return dqkv.array;
}

py::array py_cross_entropy(py::array logits, const py::array& targets, float scale) {
    const char* f = "cross_entropy";
    check_ndim({f, "logits"}, logits, 2);
    const Index M = logits.shape(0), V = logits.shape(1);
    const int32_t* pt = ids_input({f, "targets"}, targets, {M}, INT32_MIN, V);
    float* pl = output({f, "logits"}, logits, {M, V});
    New losses({M});
    without_gil([&] { cross_entropy(losses.data, pl, pt, M, V, scale); });
    return losses.array;
}

py::tuple py_head_cross_entropy(const py::array& x, const py::array& wte, const py::array& targets, Optional dwte,
                                const Optional& shift) {
    const char* f = "head_cross_entropy";
    check_ndim({f, "wte"}, wte, 2);
    const Index V = wte.shape(0), C = wte.shape(1);
    const auto shape = with_last(rows_shape({f, "x"}, x), C);
    const float *px = input({f, "x"}, x, shape), *pw = input({f, "wte"}, wte, {V, C});
    const int32_t* pt = ids_input({f, "targets"}, targets, without_last(shape), INT32_MIN, V);
    float* pdw = output({f, "dwte"}, dwte, {V, C});
    const float* ps = input({f, "shift"}, shift, {V});
    std::optional<New> dx;
    if (pdw) dx.emplace(shape);
    double loss;
    without_gil([&] { loss = head_cross_entropy(dx ? dx->data : nullptr, pdw, px, pw, pt, ps, rows_of(shape), V, C); });
    return py::make_tuple(loss, dx ? py::object(dx->array) : py::none());
}

py::array dropout_by(const char* f, const char* name, const py::array& x, double p, const py::tuple& key,
                     uint32_t first_sample) {
    const auto shape = rows_shape({f, name}, x);
    if (!(p >= 0 && p < 1)) Argument{f, "p"}.wrong_value("in [0, 1)", std::to_string(p));
    if (key.size() != 4) Argument{f, "key"}.wrong_value("(seed, step, layer, place)", std::string(py::str(key)));
    uint32_t words[4];
    for (int i = 0; i < 4; i++)  // like the reference: the low 32 bits
        words[i] = py::cast<uint32_t>(py::int_(key[i]) & py::int_(0xFFFFFFFFu));
    const float* px = input({f, name}, x, shape);
    New y(shape);
    const Index B = shape[0], size = B ? x.size() / B : 0;
    without_gil([&] { dropout(y.data, px, words, first_sample, p, B, size); });
    return y.array;
}
py::array py_dropout_forward(const py::array& x, double p, const py::tuple& key, uint32_t first_sample) {
    return dropout_by("dropout_forward", "x", x, p, key, first_sample);
}
py::array py_dropout_backward(const py::array& dy, double p, const py::tuple& key, uint32_t first_sample) {
    return dropout_by("dropout_backward", "dy", dy, p, key, first_sample);
}

double py_global_norm(const py::array& g) {
    check_ndim({"global_norm", "g"}, g, 1);
    const float* p = input({"global_norm", "g"}, g, shape_of(g));
    const Index n = g.size();
    return without_gil([&] { return global_norm(p, n); });
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
    AdamW settings = {float(lr),
                      float(beta1),
                      float(beta2),
                      float(eps),
                      float(lr * weight_decay),
                      float(1 - std::pow(beta1, double(step))),
                      float(std::sqrt(1 - std::pow(beta2, double(step)))),
                      float(grad_scale)};
    without_gil([&] { adamw_step(pp, pg, pm, pv, shape[0], n_decay, settings); });
}

void py_muon_step(py::array p, py::array g, py::array m, const py::array& matrices, double lr, double momentum,
                  double weight_decay, double grad_scale) {
    const char* f = "muon_step";
    const Argument arg{f, "matrices"};
    check_ndim({f, "p"}, p, 1), check_ndim(arg, matrices, 2);
    const std::vector<Index> shape = shape_of(p);
    check_array(arg, matrices, py::dtype::of<int64_t>(), "int64");
    check_shape(arg, matrices, {matrices.shape(0), 4});
    const int64_t* at = static_cast<const int64_t*>(matrices.data());
    const Index count = matrices.shape(0);
    for (const int64_t* a = at; a < at + 4 * count; a += 4) {  // start, rows, columns, distance
        const Index size = shape[0];  // no sum below can overflow
        const bool inside = a[0] >= 0 && a[1] >= 1 && a[2] >= 1 && a[2] <= a[3] && a[3] <= size &&
                            a[0] <= size - a[2] && a[1] - 1 <= (size - a[0] - a[2]) / a[3];
        if (!inside)
            arg.wrong_value("within " + std::to_string(shape[0]) + " floats", shape_text({a[0], a[1], a[2], a[3]}));
    }
    float *pp = output({f, "p"}, p, shape), *pg = output({f, "g"}, g, shape), *pm = output({f, "m"}, m, shape);
    Muon settings = {float(lr), float(momentum), float(lr * weight_decay), float(grad_scale), {}};
    const py::object polar = py::module_::import("npgpt.engine.ops").attr("POLAR");
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++) settings.polar[i][j] = py::cast<float>(polar[py::int_(i)][py::int_(j)]);
    without_gil([&] { muon_step(pp, pg, pm, at, count, settings); });
}

// ---- memory, threads, choice of kernels

py::array py_empty(const std::vector<Index>& shape) {
    for (Index n : shape)
        if (n < 0) Argument{"empty", "shape"}.wrong_value("non-negative", shape_text(shape));
    return New(shape).array;
}

std::vector<std::string> py_available() {
    int count;
    const Kernels* const* tables = available_kernels(&count);
    std::vector<std::string> names;
    names.reserve(size_t(count));
    for (int i = 0; i < count; i++) names.emplace_back(tables[i]->name);
    return names;
}

void py_use(const std::string& name) {
    const Kernels* kernels = find_kernels(name.c_str());
    if (!kernels) throw py::value_error("use: no kernels named " + name + " for this CPU");
    set_active_kernels(kernels);
}

void py_set_num_threads(int n) {
    if (n < 1) Argument{"set_num_threads", "n"}.wrong_value("at least 1", std::to_string(n));
    without_gil([&] { set_num_threads(n); });
}

}  // namespace

#include "weights.inl"

PYBIND11_MODULE(_kernels, m) {
    m.doc() = "The ops of npgpt.engine.ops, compiled, for float32; npgpt.engine.kernels chooses between the two.";
    m.attr("__version__") = NPGPT_VERSION;
    m.attr("LOGITS") = LOGITS;
    const py::none none;

    m.def("embedding_forward", py_embedding_forward, "ids"_a, "positions"_a, "wte"_a, "wpe"_a);
    m.def("embedding_backward", py_embedding_backward, "dx"_a, "ids"_a, "positions"_a, "dwte"_a, "dwpe"_a);
    m.def("layernorm_forward", py_layernorm_forward, "x"_a, "w"_a, "b"_a, "eps"_a);
    m.def("layernorm_apply", py_layernorm_apply, "x"_a, "mean"_a, "rstd"_a, "w"_a, "b"_a);
    m.def("layernorm_backward", py_layernorm_backward, "dy"_a, "x"_a, "mean"_a, "rstd"_a, "w"_a, "dw"_a, "db"_a = none,
          "residual"_a = none);
    m.def("rmsnorm_forward", py_rmsnorm_forward, "x"_a, "w"_a, "eps"_a);
    m.def("rmsnorm_apply", py_rmsnorm_apply, "x"_a, "rstd"_a, "w"_a);
    m.def("rmsnorm_backward", py_rmsnorm_backward, "dy"_a, "x"_a, "rstd"_a, "w"_a, "dw"_a, "residual"_a = none);
    m.def("matmul", py_matmul, "a"_a, "b"_a, "out"_a = none, "trans_a"_a = false, "trans_b"_a = false,
          "accumulate"_a = false);
    m.def("linear_forward", py_linear_forward, "x"_a, "w"_a, "b"_a = none, "residual"_a = none);
    m.def("linear_gelu_forward", py_linear_gelu_forward, "x"_a, "w"_a, "b"_a = none);
    m.def("linear_backward", py_linear_backward, "dy"_a, "x"_a, "w"_a, "dw"_a, "db"_a = none);
    m.def("gelu_linear_backward", py_gelu_linear_backward, "dz"_a, "h"_a, "w"_a, "dw"_a, "db"_a = none);
    m.def("gelu_forward", py_gelu_forward, "x"_a);
    m.def("gelu_backward", py_gelu_backward, "dy"_a, "x"_a);
    m.def("erf_gelu_forward", py_erf_gelu_forward, "x"_a);
    m.def("erf_gelu_backward", py_erf_gelu_backward, "dy"_a, "x"_a);
    m.def("swiglu_forward", py_swiglu_forward, "h"_a);
    m.def("swiglu_backward", py_swiglu_backward, "dy"_a, "h"_a);
    m.def("rope_forward", py_rope_forward, "qkv"_a, "positions"_a, "cos"_a, "sin"_a, "n_rotated"_a);
    m.def("rope_backward", py_rope_backward, "dqkv"_a, "positions"_a, "cos"_a, "sin"_a, "n_rotated"_a);
    m.def("softmax_forward", py_softmax_forward, "x"_a);
    m.def("softmax_backward", py_softmax_backward, "dy"_a, "y"_a);
    m.def("attention_forward", py_attention_forward, "qkv"_a, "n_head"_a, "scale"_a, "first_key"_a = none,
          "n_kv_head"_a = none);
    m.def("attention_backward", py_attention_backward, "dout"_a, "qkv"_a, "out"_a, "lse"_a, "n_head"_a, "scale"_a,
          "first_key"_a = none, "n_kv_head"_a = none);
    m.def("cross_entropy", py_cross_entropy, "logits"_a, "targets"_a, "scale"_a);
    m.def("head_cross_entropy", py_head_cross_entropy, "x"_a, "wte"_a, "targets"_a, "dwte"_a = none, "shift"_a = none);
    m.def("dropout_forward", py_dropout_forward, "x"_a, "p"_a, "key"_a, "first_sample"_a = 0);
    m.def("dropout_backward", py_dropout_backward, "dy"_a, "p"_a, "key"_a, "first_sample"_a = 0);
    m.def("global_norm", py_global_norm, "g"_a);
    m.def("adamw_step", py_adamw_step, "p"_a, "g"_a, "m"_a, "v"_a, "n_decay"_a, "lr"_a, "beta1"_a, "beta2"_a, "eps"_a,
          "weight_decay"_a, "step"_a, "grad_scale"_a);
    m.def("muon_step", py_muon_step, "p"_a, "g"_a, "m"_a, "matrices"_a, "lr"_a, "momentum"_a, "weight_decay"_a,
          "grad_scale"_a);

    bind_text(m);
    bind_weights(m);

    m.def("empty", py_empty, "An uninitialised float32 array from the block store.");
    m.def("release_blocks", release_blocks, "Hands the memory kept for reuse back to the system.");
    m.def("available", py_available, "Names of the kernels compiled in that this CPU can run, plainest first.");
    m.def("use", py_use, "Chooses kernels by name, or auto for the best.");
    m.def("name", [] { return std::string(active_kernels().name); }, "The kernels in use.");
    m.def("num_threads", num_threads);
    m.def("set_num_threads", py_set_num_threads);
    const py::call_guard<py::gil_scoped_release> no_gil;
    m.def("peak_gflops", peak_gflops, no_gil, "Multiply-adds of this machine, GFLOP/s.");
    m.def("read_bandwidth", read_bandwidth, no_gil, "Reads from memory, GB/s.");
}
