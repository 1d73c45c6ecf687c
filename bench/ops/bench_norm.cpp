#include "bench/common/bench.h"

using namespace mmx;

MMX_BENCH(rms_norm) {
    for (const bench::Case& c : b.cases("norm", "rms_norm"))
        for (const DType dtype : {DType::kF32, DType::kBF16}) {
            const int64_t num_tokens = c["num_tokens"], num_heads = c["num_heads"], hidden = c["hidden"];
            const int64_t row = num_heads * hidden, count = num_tokens * row;
            const bench::Buffer x = b.randn(dtype, count), weight = b.randn(dtype, hidden);
            const bench::Buffer out = b.empty(dtype, count);
            const RmsNormParams p{.out = out.as(),
                                  .x = x.as(),
                                  .weight = weight.as(),
                                  .num_tokens = num_tokens,
                                  .num_heads = num_heads,
                                  .hidden = hidden,
                                  .out_token_stride = row,
                                  .out_head_stride = hidden,
                                  .x_token_stride = row,
                                  .x_head_stride = hidden,
                                  .eps = 1e-6f,
                                  .gemma = true,
                                  .dtype = dtype,
                                  .weight_dtype = dtype};
            b.run("rms_norm", c, dtype,
                  {.bytes = 2.0 * static_cast<double>(x.bytes()),
                   .out = &out,
                   .baseline = "copy",
                   .baseline_run = [&] { b.backend().copy(out.as(), x.as(), x.bytes()); }},
                  b.ops().rms_norm, p);
        }
}

MMX_BENCH(add_rms_norm) {
    for (const bench::Case& c : b.cases("norm", "add_rms_norm"))
        for (const DType dtype : {DType::kF32, DType::kBF16}) {
            const int64_t num_tokens = c["num_tokens"], hidden = c["hidden"], count = num_tokens * hidden;
            const bench::Buffer x = b.randn(dtype, count, 1e-3f), weight = b.randn(dtype, hidden);
            const bench::Buffer residual = b.randn(dtype, count), out = b.empty(dtype, count);
            const AddRmsNormParams p{.out = out.as(),
                                     .residual = residual.as(),
                                     .x = x.as(),
                                     .weight = weight.as(),
                                     .num_tokens = num_tokens,
                                     .hidden = hidden,
                                     .out_stride = hidden,
                                     .residual_stride = hidden,
                                     .x_stride = hidden,
                                     .eps = 1e-6f,
                                     .gemma = true,
                                     .dtype = dtype,
                                     .weight_dtype = dtype};
            b.run("add_rms_norm", c, dtype,
                  {.bytes = 4.0 * static_cast<double>(x.bytes()),
                   .baseline = "copy of x",
                   .baseline_run = [&] { b.backend().copy(out.as(), x.as(), x.bytes()); }},
                  b.ops().add_rms_norm, p);
        }
}
