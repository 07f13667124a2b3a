// Weights in blocks: unpacked, and as a factor of matmul. Part of module.cpp, whose checks it uses.

namespace {

// Rows of blocks (N,bytes) that hold K numbers each
Matrix block_rows(const char* f, const py::array& blocks, const std::string& type, Index K, const char* from) {
    check_ndim({f, "blocks"}, blocks, 2);
    const auto found = std::find(std::begin(WEIGHT_TYPES), std::end(WEIGHT_TYPES), type);
    if (found == std::end(WEIGHT_TYPES)) Argument{f, "type"}.wrong_value("one of UNPACKED", type);
    const Matrix w{blocks.data(), WeightType(found - std::begin(WEIGHT_TYPES)), blocks.shape(0), K};
    if (!blocks.dtype().equal(py::dtype::of<uint8_t>()))
        Argument{f, "blocks"}.wrong_type("uint8", std::string(py::str(blocks.dtype())));
    if (!(blocks.flags() & py::array::c_style)) Argument{f, "blocks"}.wrong_value("C-contiguous", "other strides");
    if (K % block_length(w.type))
        Argument{f, from}.wrong_value("rows of whole blocks", std::to_string(K) + " in a row");
    check_shape({f, "blocks"}, blocks, {w.N, row_bytes(w.type, K)});
    return w;
}

void py_unpack_rows(const py::array& blocks, const std::string& type, py::array out) {
    const char* f = "unpack_rows";
    check_ndim({f, "out"}, out, 2);
    const Matrix w = block_rows(f, blocks, type, out.shape(1), "out");
    float* y = output({f, "out"}, out, {w.N, w.K});
    without_gil([&] { unpack_rows(y, w, 0, w.N); });
}

void py_matmul_blocks(const py::array& a, const std::vector<std::pair<py::array, std::string>>& parts, py::array out,
                      const Optional& b, const Optional& residual,
                      const std::optional<std::pair<py::array, py::array>>& low_rank, bool trans_b, bool accumulate) {
    const char* f = "matmul_blocks";
    check_ndim({f, "a"}, a, 2), check_ndim({f, "out"}, out, 2);
    const Index M = a.shape(0), K = a.shape(1), N = out.shape(1), lda = row_stride({f, "a"}, a);
    std::vector<Matrix> stored;
    Index rows = 0;
    for (const auto& [blocks, type] : parts) {
        stored.push_back(block_rows(f, blocks, type, trans_b ? K : N, trans_b ? "a" : "out"));
        rows += stored.back().N;
    }
    if (rows != (trans_b ? N : K))
        Argument{f, "parts"}.wrong_value("of " + std::to_string(trans_b ? N : K) + " rows", std::to_string(rows));
    float* y = output({f, "out"}, out, {M, N}, true);
    Epilogue epilogue;
    epilogue.bias = input({f, "b"}, b, {N}), epilogue.residual = input({f, "residual"}, residual, {M, N});
    const Index ldc = row_stride({f, "out"}, out);
    if (residual && ldc != N) Argument{f, "out"}.wrong_value("C-contiguous beside a residual", "rows apart");
    const View view = {nullptr, trans_b ? 1 : N, trans_b ? K : 1, {stored.data(), Index(stored.size())}};
    LowRank more = {};
    if (low_rank) {
        const auto& [p, q] = *low_rank;
        check_ndim({f, "low_rank"}, p, 2);
        const Index R = more.K = p.shape(1);
        more.a = {input({f, "low_rank"}, p, {M, R}), R, 1};
        const float* pq = input({f, "low_rank"}, q, trans_b ? std::vector<Index>{R, N} : std::vector<Index>{N, R});
        more.b = trans_b ? View{pq, N, 1} : View{pq, 1, R};
    }
    without_gil([&] {
        matmul(y, ldc, {static_cast<const float*>(a.data()), lda, 1}, view, M, N, K, accumulate,
               b || residual ? &epilogue : nullptr, more.K ? &more : nullptr);
    });
}

void bind_weights(py::module_& m) {
    m.def("unpack_rows", py_unpack_rows, "blocks"_a, "type"_a, "out"_a, "Writes the numbers of rows of blocks to out.");
    m.def("matmul_blocks", py_matmul_blocks, "a"_a, "parts"_a, "out"_a, "b"_a = py::none(), "residual"_a = py::none(),
          "low_rank"_a = py::none(), "trans_b"_a = false, "accumulate"_a = false,
          "matmul whose b is rows of blocks, pairs of blocks and type; low_rank (p, q): += p q, or p q.T without "
          "trans_b.");
    py::list unpacked;
    for (const char* type : WEIGHT_TYPES) unpacked.append(type);
    m.attr("UNPACKED") = py::tuple(unpacked);
}

}  // namespace
