#include "cpp/kernels/gated_act.h"

namespace mmx::cpu::MMX_CPU_ISA {

void gated_act(const GatedActParams& p, Stream) {
    dispatch_float(p.dtype, [&](auto t) {
        using T = decltype(t);
        parallel_for(p.num_tokens, ceil_div(4096, p.inter), [&](int64_t begin, int64_t end) {
            for (int64_t token = begin; token < end; ++token) {
                const T* gate = static_cast<const T*>(p.gate_up) + token * p.gate_up_stride;
                gated_act_row(static_cast<T*>(p.out) + token * p.out_stride, gate, gate + p.inter, p.inter,
                              p.activation, p.alpha, p.limit);
            }
        });
    });
}

}  // namespace mmx::cpu::MMX_CPU_ISA
