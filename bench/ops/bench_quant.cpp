#include "bench/common/bench.h"
#include "cpp/core/math.h"

using namespace mmx;

MMX_BENCH(fp8_block_dequant) {
    for (const bench::Case& c : b.cases("quant", "fp8_block_dequant"))
        for (const DType dtype : {DType::kF32, DType::kBF16}) {
            const int64_t rows = c["rows"], cols = c["cols"];
            const bench::Buffer x = b.randn(DType::kE4M3, rows * cols), out = b.empty(dtype, rows * cols);
            const bench::Buffer scale = b.randn(DType::kF32, ceil_div(rows, 128) * ceil_div(cols, 128));
            const Fp8BlockDequantParams p{.out = out.as(),
                                          .x = x.as(),
                                          .scale = scale.as<float>(),
                                          .rows = rows,
                                          .cols = cols,
                                          .out_stride = cols,
                                          .x_stride = cols,
                                          .scale_stride = ceil_div(cols, 128),
                                          .dtype = dtype};
            b.run("fp8_block_dequant", c, dtype,
                  {.bytes = static_cast<double>(x.bytes() + out.bytes()),
                   .out = &out,
                   .baseline = "copy of x",
                   .baseline_run = [&] { b.backend().copy(out.as(), x.as(), x.bytes()); }},
                  b.ops().fp8_block_dequant, p);
        }
}
