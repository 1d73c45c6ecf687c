#include "bench/common/bench.h"

using namespace mmx;

MMX_BENCH(gated_act) {
    for (const bench::Case& c : b.cases("activation", "gated_act"))
        for (const DType dtype : {DType::kF32, DType::kBF16}) {
            const int64_t num_tokens = c["num_tokens"], inter = c["inter"];
            const bench::Buffer gate_up = b.randn(dtype, num_tokens * 2 * inter);
            const bench::Buffer out = b.empty(dtype, num_tokens * inter);
            const GatedActParams p{.out = out.as(),
                                   .gate_up = gate_up.as(),
                                   .num_tokens = num_tokens,
                                   .inter = inter,
                                   .out_stride = inter,
                                   .gate_up_stride = 2 * inter,
                                   .activation = Activation::kSwigluOai,
                                   .alpha = 1.702f,
                                   .limit = 7.0f,
                                   .dtype = dtype};
            b.run("gated_act", c, dtype,
                  {.bytes = static_cast<double>(gate_up.bytes() + out.bytes()),
                   .out = &out,
                   .baseline = "copy of gate",
                   .baseline_run = [&] { b.backend().copy(out.as(), gate_up.as(), out.bytes()); }},
                  b.ops().gated_act, p);
        }
}
