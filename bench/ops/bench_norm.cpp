#include <numeric>
#include <vector>

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

namespace {

/// Operands of a norm of a sum.
struct AddNorm {
    bench::Buffer x, weight, residual, out;
    AddRmsNormParams params;

    AddNorm(bench::Bench& b, const bench::Case& c, DType dtype)
        : x(b.randn(dtype, c["num_tokens"] * c["hidden"], 1e-3f)),
          weight(b.randn(dtype, c["hidden"])),
          residual(b.randn(dtype, c["num_tokens"] * c["hidden"])),
          out(b.empty(dtype, c["num_tokens"] * c["hidden"])),
          params{.out = out.as(),
                 .residual = residual.as(),
                 .x = x.as(),
                 .weight = weight.as(),
                 .num_tokens = c["num_tokens"],
                 .hidden = c["hidden"],
                 .out_stride = c["hidden"],
                 .residual_stride = c["hidden"],
                 .x_stride = c["hidden"],
                 .eps = 1e-6f,
                 .gemma = true,
                 .dtype = dtype,
                 .weight_dtype = dtype} {}

    bench::Work work(bench::Bench& b, double more_bytes = 0) const {
        return {.bytes = 4.0 * static_cast<double>(x.bytes()) + more_bytes,
                .baseline = "copy of x",
                .baseline_run = [&] { b.backend().copy(out.as(), x.as(), x.bytes()); }};
    }
};

}  // namespace

MMX_BENCH(add_rms_norm) {
    for (const bench::Case& c : b.cases("norm", "add_rms_norm"))
        for (const DType dtype : {DType::kF32, DType::kBF16}) {
            const AddNorm norm(b, c, dtype);
            b.run("add_rms_norm", c, dtype, norm.work(b), b.ops().add_rms_norm, norm.params);
        }
}

MMX_BENCH(add_rms_norm_quantize) {
    for (const bench::Case& c : b.cases("norm", "add_rms_norm_quantize"))
        for (const DType dtype : {DType::kF32, DType::kBF16}) {
            const AddNorm norm(b, c, dtype);
            const int64_t count = c["num_tokens"] * c["hidden"];
            const bench::Buffer codes = b.empty(DType::kE4M3, count),
                                scale = b.empty(DType::kF32, count / 128);
            const AddRmsNormQuantizeParams p{
                .norm = norm.params, .codes = codes.as(), .scale = scale.as<float>()};
            const auto more_bytes = static_cast<double>(codes.bytes() + scale.bytes());
            b.run("add_rms_norm_quantize", c, dtype, norm.work(b, more_bytes), b.ops().add_rms_norm_quantize,
                  p);
        }
}

MMX_BENCH(combine_add_rms_norm) {
    for (const bench::Case& c : b.cases("norm", "combine_add_rms_norm"))
        for (const DType dtype : {DType::kF32, DType::kBF16}) {
            const AddNorm norm(b, c, dtype);
            const int64_t num_rows = c["num_tokens"] * c["topk"], count = c["num_tokens"] * c["hidden"];
            const bench::Buffer x = b.randn(dtype, num_rows * c["hidden"]),
                                weights = b.randn(DType::kF32, num_rows),
                                codes = b.empty(DType::kE4M3, count),
                                scale = b.empty(DType::kF32, count / 128);
            std::vector<int32_t> places(static_cast<size_t>(num_rows));
            std::iota(places.rbegin(), places.rend(), 0);
            const bench::Buffer positions = b.upload(places);
            const CombineAddRmsNormParams p{.combine = {.out = norm.out.as(),
                                                        .x = x.as(),
                                                        .row_positions = positions.as<int32_t>(),
                                                        .topk_weights = weights.as<float>(),
                                                        .shared = nullptr,
                                                        .num_tokens = c["num_tokens"],
                                                        .topk = c["topk"],
                                                        .hidden = c["hidden"],
                                                        .out_stride = c["hidden"],
                                                        .shared_stride = 0,
                                                        .dtype = dtype},
                                            .norm = norm.params,
                                            .codes = codes.as(),
                                            .scale = scale.as<float>()};
            const auto more_bytes = static_cast<double>(x.bytes() + codes.bytes() + scale.bytes());
            b.run("combine_add_rms_norm", c, dtype, norm.work(b, more_bytes), b.ops().combine_add_rms_norm,
                  p);
        }
}
