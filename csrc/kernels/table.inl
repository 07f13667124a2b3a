// The table of one instruction set.
#define NPGPT_TRAINING(kernel) (TRAINING ? (kernel) : nullptr)

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
    NPGPT_TRAINING(attention_forward),
    NPGPT_TRAINING(attention_backward),
    matvec,
    matvec_int8,
    round_int8,
    unpack_rows,
    attend,
    attend_block,
    layernorm_forward,
    NPGPT_TRAINING(layernorm_apply),
    NPGPT_TRAINING(layernorm_backward),
    rmsnorm_forward,
    NPGPT_TRAINING(rmsnorm_apply),
    NPGPT_TRAINING(rmsnorm_backward),
    NPGPT_TRAINING(softmax_forward),
    NPGPT_TRAINING(softmax_backward),
    NPGPT_TRAINING(cross_entropy),
    gelu_forward,
    NPGPT_TRAINING(gelu_backward),
    erf_gelu_forward,
    NPGPT_TRAINING(erf_gelu_backward),
    swiglu_forward,
    NPGPT_TRAINING(swiglu_backward),
    rotate,
    add,
    NPGPT_TRAINING(sum),
    NPGPT_TRAINING(sum_rows),
    philox,
    NPGPT_TRAINING(dropout),
    NPGPT_TRAINING(square_sum),
    NPGPT_TRAINING(adamw),
    NPGPT_TRAINING(probe_flops),
    NPGPT_TRAINING(probe_read),
};

}  // namespace NPGPT_ISA
}  // namespace npgpt
#undef NPGPT_TRAINING
