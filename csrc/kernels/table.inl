// The table of one instruction set.

namespace npgpt {
namespace NPGPT_ISA {

extern const Kernels kernels;
const Kernels kernels = {
    NPGPT_ISA_NAME,
    int(MR),
    int(NR),
    pack_a,
    pack_b,
    matmul_block,
    attention_scratch,
    attention_forward,
    attention_backward,
    matvec,
    unpack_rows,
    attend,
    attend_block,
    layernorm_forward,
    layernorm_apply,
    layernorm_backward,
    softmax_forward,
    softmax_backward,
    cross_entropy,
    gelu_forward,
    gelu_backward,
    add,
    sum,
    sum_rows,
    dropout,
    square_sum,
    adamw,
    probe_flops,
    probe_read,
};

}  // namespace NPGPT_ISA
}  // namespace npgpt
