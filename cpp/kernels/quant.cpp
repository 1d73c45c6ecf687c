#include "cpp/kernels/fp8.h"

namespace mmx::cpu::MMX_CPU_ISA {

void fp8_block_dequant(const Fp8BlockDequantParams& p, Stream) {
    dispatch_float(p.dtype, [&](auto t) {
        using T = decltype(t);
        parallel_for(p.rows, ceil_div(16384, p.cols), [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row)
                dequant_row(static_cast<T*>(p.out) + row * p.out_stride,
                            static_cast<const e4m3*>(p.x) + row * p.x_stride,
                            p.scale + row / kFp8Block * p.scale_stride, p.cols);
        });
    });
}

}  // namespace mmx::cpu::MMX_CPU_ISA
