#include <algorithm>

#include "bench/common/routing.h"
#include "cpp/core/math.h"

using namespace mmx;
using bench::Bench;
using bench::Buffer;
using bench::Case;

namespace {

/// Routing to local experts and its plan, made on the host.
struct Plan {
    std::vector<int32_t> offsets, rows;
    int64_t num_touched = 0;  // experts that have rows

    explicit Plan(const Case& c) {
        std::vector<std::vector<int32_t>> rows_of(static_cast<size_t>(c["num_local_experts"]));
        const std::vector<int32_t> experts = bench::random_experts(c);
        for (size_t row = 0; row < experts.size(); ++row) {
            const auto local = static_cast<size_t>(experts[row] - c["first_expert"]);
            if (local < rows_of.size()) rows_of[local].push_back(static_cast<int32_t>(row));
        }
        offsets.push_back(0);
        for (const auto& of_expert : rows_of) {
            rows.insert(rows.end(), of_expert.begin(), of_expert.end());
            offsets.push_back(static_cast<int32_t>(rows.size()));
            num_touched += !of_expert.empty();
        }
        rows.resize(static_cast<size_t>(c["num_tokens"] * c["topk"]));
    }

    int64_t num_rows() const { return offsets.back(); }
};

/// Positive scales near 0.01.
Buffer scales(Bench& b, int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (size_t i = 0; i < values.size(); ++i) values[i] = 0.01f + 1e-4f * static_cast<float>(i % 64);
    return b.upload(values);
}

int64_t groups(int64_t n) { return ceil_div(n, kFp8Group); }

}  // namespace

MMX_BENCH(fp8_quantize) {
    for (const Case& c : b.cases("fp8", "fp8_quantize"))
        for (const DType dtype : b.dtypes()) {
            const int64_t rows = c["m"], cols = c["k"];
            const Buffer x = b.randn(dtype, rows * cols), out = b.empty(DType::kE4M3, rows * cols);
            const Buffer scale = b.empty(DType::kF32, rows * groups(cols));
            const Fp8QuantizeParams p{.out = out.as(),
                                      .scale = scale.as<float>(),
                                      .x = x.as(),
                                      .rows = rows,
                                      .cols = cols,
                                      .x_stride = cols,
                                      .dtype = dtype};
            b.run("fp8_quantize", c, dtype,
                  {.bytes = static_cast<double>(x.bytes() + out.bytes() + scale.bytes()), .out = &out},
                  b.ops().fp8_quantize, p);
        }
}

MMX_BENCH(mxfp8_dequant) {
    for (const Case& c : b.cases("fp8", "mxfp8_dequant"))
        for (const DType dtype : b.dtypes()) {
            const int64_t rows = c["m"], cols = c["k"];
            const Buffer x = b.randn(DType::kE4M3, rows * cols), out = b.empty(dtype, rows * cols);
            const Buffer scale =
                b.upload(std::vector<uint8_t>(static_cast<size_t>(rows * ceil_div(cols, kMxfp8Group)), 120));
            const Mxfp8DequantParams p{.out = out.as(),
                                       .x = x.as(),
                                       .scale = scale.as<uint8_t>(),
                                       .rows = rows,
                                       .cols = cols,
                                       .dtype = dtype};
            b.run("mxfp8_dequant", c, dtype,
                  {.bytes = static_cast<double>(x.bytes() + out.bytes() + scale.bytes()), .out = &out},
                  b.ops().mxfp8_dequant, p);
        }
}

MMX_BENCH(fp8_linear) {
    for (const Case& c : b.cases("fp8", "fp8_linear")) {
        const int64_t m = c["m"], n = c["n"], k = c["k"];
        const Buffer x = b.randn(DType::kE4M3, m * k), weight = b.randn(DType::kE4M3, n * k, 0.02f);
        const Buffer x_scale = scales(b, m * groups(k)), weight_scale = scales(b, groups(n) * groups(k));
        const Buffer out = b.empty(DType::kBF16, m * n);
        const Fp8LinearParams p{.out = out.as(),
                                .x = x.as(),
                                .x_scale = x_scale.as<float>(),
                                .weight = weight.as(),
                                .weight_scale = weight_scale.as<float>(),
                                .m = m,
                                .n = n,
                                .k = k,
                                .out_stride = n,
                                .out_dtype = DType::kBF16};
        b.run("fp8_linear", c, DType::kE4M3,
              {.bytes = static_cast<double>(x.bytes() + weight.bytes() + out.bytes()),
               .flops = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k),
               .math = DType::kE4M3,
               .out = &out},
              b.ops().fp8_linear, p);
    }
}

MMX_BENCH(fp8_moe_gate_up) {
    for (const Case& c : b.cases("fp8", "fp8_moe_gate_up")) {
        const Plan plan(c);
        const Buffer offsets = b.upload(plan.offsets), rows = b.upload(plan.rows);
        const int64_t num_tokens = c["num_tokens"], hidden = c["hidden"], inter = c["inter"];
        const int64_t num_experts = c["num_local_experts"], per_expert = 2 * inter * hidden;
        const int64_t num_rows = num_tokens * c["topk"];
        const Buffer x = b.randn(DType::kE4M3, num_tokens * hidden);
        const Buffer x_scale = scales(b, num_tokens * groups(hidden));
        const Buffer weight = b.randn(DType::kE4M3, num_experts * per_expert, 0.02f);
        const Buffer weight_scale = scales(b, num_experts * groups(2 * inter) * groups(hidden));
        const Buffer out = b.empty(DType::kE4M3, num_rows * inter);
        const Buffer out_scale = b.empty(DType::kF32, num_rows * groups(inter));
        Fp8MoeGateUpParams p{.out = out.as(),
                             .out_scale = out_scale.as<float>(),
                             .x = x.as(),
                             .x_scale = x_scale.as<float>(),
                             .weight = weight.as(),
                             .weight_scale = weight_scale.as<float>(),
                             .expert_offsets = offsets.as<int32_t>(),
                             .sorted_rows = rows.as<int32_t>(),
                             .workspace = nullptr,
                             .workspace_bytes = 0,
                             .num_tokens = num_tokens,
                             .topk = c["topk"],
                             .num_local_experts = num_experts,
                             .hidden = hidden,
                             .inter = inter,
                             .activation = Activation::kSilu,
                             .alpha = 0,
                             .limit = 0};
        p.workspace_bytes = b.ops().fp8_moe_gate_up_workspace(p);
        const Buffer workspace = b.empty(DType::kI8, std::max<int64_t>(1, p.workspace_bytes));
        p.workspace = workspace.as();
        b.run("fp8_moe_gate_up", c, DType::kE4M3,
              {.bytes = static_cast<double>(plan.num_touched * per_expert + x.bytes() + out.bytes()),
               .flops = 2.0 * static_cast<double>(plan.num_rows() * per_expert),
               .math = DType::kE4M3,
               .out = &out},
              b.ops().fp8_moe_gate_up, p);
    }
}

MMX_BENCH(fp8_moe_down) {
    for (const Case& c : b.cases("fp8", "fp8_moe_down")) {
        const Plan plan(c);
        const Buffer offsets = b.upload(plan.offsets);
        const int64_t num_rows = c["num_tokens"] * c["topk"], hidden = c["hidden"], inter = c["inter"];
        const int64_t num_experts = c["num_local_experts"], per_expert = hidden * inter;
        const Buffer x = b.randn(DType::kE4M3, num_rows * inter);
        const Buffer x_scale = scales(b, num_rows * groups(inter));
        const Buffer weight = b.randn(DType::kE4M3, num_experts * per_expert, 0.02f);
        const Buffer weight_scale = scales(b, num_experts * groups(hidden) * groups(inter));
        const Buffer out = b.empty(DType::kBF16, num_rows * hidden);
        const Fp8MoeDownParams p{.out = out.as(),
                                 .x = x.as(),
                                 .x_scale = x_scale.as<float>(),
                                 .weight = weight.as(),
                                 .weight_scale = weight_scale.as<float>(),
                                 .expert_offsets = offsets.as<int32_t>(),
                                 .num_rows = num_rows,
                                 .num_local_experts = num_experts,
                                 .hidden = hidden,
                                 .inter = inter,
                                 .out_dtype = DType::kBF16};
        b.run("fp8_moe_down", c, DType::kE4M3,
              {.bytes = static_cast<double>(plan.num_touched * per_expert + x.bytes() + out.bytes()),
               .flops = 2.0 * static_cast<double>(plan.num_rows() * per_expert),
               .math = DType::kE4M3,
               .out = &out},
              b.ops().fp8_moe_down, p);
    }
}
