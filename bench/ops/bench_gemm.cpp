#include "bench/common/bench.h"

using namespace mmx;

MMX_BENCH(linear) {
    for (const bench::Case& c : b.cases("gemm", "linear"))
        for (const DType dtype : {DType::kF32, DType::kBF16}) {
            const int64_t m = c["m"], n = c["n"], k = c["k"];
            const bench::Buffer x = b.randn(dtype, m * k), weight = b.randn(dtype, n * k, 0.02f);
            const bench::Buffer out = b.empty(dtype, m * n);
            const LinearParams p{.out = out.as(),
                                 .x = x.as(),
                                 .weight = weight.as(),
                                 .m = m,
                                 .n = n,
                                 .k = k,
                                 .out_stride = n,
                                 .x_stride = k,
                                 .dtype = dtype,
                                 .out_dtype = dtype};
            const double bytes = static_cast<double>(x.bytes() + weight.bytes() + out.bytes());
            const double flops =
                2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
            b.run("linear", c, dtype, {.bytes = bytes, .flops = flops, .math = dtype, .out = &out},
                  b.ops().linear, p);
        }
}
