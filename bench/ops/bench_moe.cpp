#include <algorithm>
#include <optional>

#include "bench/common/routing.h"
#include "cpp/core/math.h"

using namespace mmx;
using bench::Bench;
using bench::Buffer;
using bench::Case;

namespace {

Buffer scratch(Bench& b, int64_t bytes) { return b.empty(DType::kI8, std::max<int64_t>(bytes, 1)); }

/// topk_ids and their plan on the device, made by the op under test.
struct Plan {
    Buffer topk_ids, expert_offsets, sorted_rows, row_positions;
    std::optional<Buffer> workspace;
    int64_t num_rows = 0, num_touched = 0;  // local rows; local experts that have any
    MoePlanParams params;

    Plan(Bench& b, const Case& c)
        : topk_ids(b.upload(bench::random_experts(c))),
          expert_offsets(b.empty(DType::kI32, c["num_local_experts"] + 1)),
          sorted_rows(b.empty(DType::kI32, c["num_tokens"] * c["topk"])),
          row_positions(b.empty(DType::kI32, c["num_tokens"] * c["topk"])),
          params{.expert_offsets = expert_offsets.as<int32_t>(),
                 .sorted_rows = sorted_rows.as<int32_t>(),
                 .row_positions = row_positions.as<int32_t>(),
                 .topk_ids = topk_ids.as<int32_t>(),
                 .workspace = nullptr,
                 .workspace_bytes = 0,
                 .num_tokens = c["num_tokens"],
                 .topk = c["topk"],
                 .first_expert = c["first_expert"],
                 .num_local_experts = c["num_local_experts"]} {
        params.workspace_bytes = b.ops().moe_plan_workspace(params);
        workspace.emplace(scratch(b, params.workspace_bytes));
        params.workspace = workspace->as();
        b.ops().moe_plan(params, b.backend().stream);
        std::vector<int32_t> offsets(static_cast<size_t>(params.num_local_experts + 1));
        b.backend().to_host(offsets.data(), expert_offsets.as(), expert_offsets.bytes());
        num_rows = offsets.back();
        for (size_t e = 0; e + 1 < offsets.size(); ++e) num_touched += offsets[e + 1] > offsets[e];
    }
};

/// Rows, a router's weights and room for its choice; the workspace is left to the op.
struct Router {
    Buffer x, gate_weight, bias, ids, weights;
    MoeRouterParams params;

    Router(Bench& b, const Case& c, DType dtype)
        : x(b.randn(dtype, c["num_tokens"] * c["hidden"])),
          gate_weight(b.randn(DType::kF32, c["num_experts"] * c["hidden"], 0.02f)),
          bias(b.randn(DType::kF32, c["num_experts"])),
          ids(b.empty(DType::kI32, c["num_tokens"] * c["topk"])),
          weights(b.empty(DType::kF32, c["num_tokens"] * c["topk"])),
          params{.topk_ids = ids.as<int32_t>(),
                 .topk_weights = weights.as<float>(),
                 .x = x.as(),
                 .gate_weight = gate_weight.as<float>(),
                 .bias = bias.as<float>(),
                 .workspace = nullptr,
                 .workspace_bytes = 0,
                 .num_tokens = c["num_tokens"],
                 .hidden = c["hidden"],
                 .num_experts = c["num_experts"],
                 .topk = c["topk"],
                 .num_shared = 0,
                 .x_stride = c["hidden"],
                 .routed_scale = 2.0f,
                 .dtype = dtype} {}

    bench::Work work() const {
        return {.bytes = static_cast<double>(x.bytes() + gate_weight.bytes()),
                .flops = 2.0 * static_cast<double>(params.num_tokens * params.hidden * params.num_experts),
                .out = &ids};
    }
};

}  // namespace

MMX_BENCH(moe_router) {
    for (const Case& c : b.cases("moe", "moe_router"))
        for (const DType dtype : b.dtypes()) {
            Router router(b, c, dtype);
            router.params.workspace_bytes = b.ops().moe_router_workspace(router.params);
            const Buffer workspace = scratch(b, router.params.workspace_bytes);
            router.params.workspace = workspace.as();
            b.run("moe_router", c, dtype, router.work(), b.ops().moe_router, router.params);
        }
}

MMX_BENCH(moe_router_plan) {
    for (const Case& c : b.cases("moe", "moe_router_plan"))
        for (const DType dtype : b.dtypes()) {
            const Router router(b, c, dtype);
            const Plan plan(b, c);
            MoeRouterPlanParams p{.router = router.params, .plan = plan.params};
            p.plan.topk_ids = p.router.topk_ids;
            p.router.workspace_bytes = b.ops().moe_router_plan_workspace(p);
            const Buffer workspace = scratch(b, p.router.workspace_bytes);
            p.router.workspace = workspace.as();
            b.run("moe_router_plan", c, dtype, router.work(), b.ops().moe_router_plan, p);
        }
}

MMX_BENCH(moe_plan) {
    for (const Case& c : b.cases("moe", "moe_plan")) {
        const Plan plan(b, c);
        b.run("moe_plan", c, DType::kI32,
              {.bytes = 3.0 * static_cast<double>(plan.topk_ids.bytes()), .out = &plan.row_positions},
              b.ops().moe_plan, plan.params);
    }
}

MMX_BENCH(moe_gate_up) {
    for (const Case& c : b.cases("moe", "moe_gate_up"))
        for (const DType dtype : b.dtypes()) {
            const Plan plan(b, c);
            const int64_t num_tokens = c["num_tokens"], hidden = c["hidden"], inter = c["inter"];
            const int64_t num_experts = c["num_local_experts"], per_expert = 2 * inter * hidden;
            const Buffer x = b.randn(dtype, num_tokens * hidden);
            const Buffer out = b.empty(dtype, num_tokens * c["topk"] * inter);
            const Buffer weight = b.randn(dtype, num_experts * per_expert, 0.02f);
            MoeGateUpParams p{.out = out.as(),
                              .x = x.as(),
                              .weight = weight.as(),
                              .weight_scale = nullptr,
                              .expert_offsets = plan.expert_offsets.as<int32_t>(),
                              .sorted_rows = plan.sorted_rows.as<int32_t>(),
                              .workspace = nullptr,
                              .workspace_bytes = 0,
                              .num_tokens = num_tokens,
                              .topk = c["topk"],
                              .num_local_experts = num_experts,
                              .hidden = hidden,
                              .inter = inter,
                              .x_stride = hidden,
                              .activation = Activation::kSwigluOai,
                              .alpha = 1.702f,
                              .limit = 7.0f,
                              .dtype = dtype,
                              .weight_dtype = dtype};
            p.workspace_bytes = b.ops().moe_gate_up_workspace(p);
            const Buffer workspace = scratch(b, p.workspace_bytes);
            p.workspace = workspace.as();
            const int64_t weight_bytes = plan.num_touched * per_expert * dtype_bytes(dtype);
            b.run("moe_gate_up", c, dtype,
                  {.bytes = static_cast<double>(weight_bytes + x.bytes() + out.bytes()),
                   .flops = 2.0 * static_cast<double>(plan.num_rows * per_expert),
                   .math = dtype,
                   .out = &out},
                  b.ops().moe_gate_up, p);
        }
}

MMX_BENCH(moe_down) {
    for (const Case& c : b.cases("moe", "moe_down"))
        for (const DType dtype : b.dtypes()) {
            const Plan plan(b, c);
            const int64_t num_rows = c["num_tokens"] * c["topk"], hidden = c["hidden"], inter = c["inter"];
            const int64_t num_experts = c["num_local_experts"], per_expert = hidden * inter;
            const Buffer x = b.randn(dtype, num_rows * inter), out = b.empty(dtype, num_rows * hidden);
            const Buffer weight = b.randn(dtype, num_experts * per_expert, 0.02f);
            MoeDownParams p{.out = out.as(),
                            .x = x.as(),
                            .weight = weight.as(),
                            .weight_scale = nullptr,
                            .expert_offsets = plan.expert_offsets.as<int32_t>(),
                            .workspace = nullptr,
                            .workspace_bytes = 0,
                            .num_rows = num_rows,
                            .num_local_experts = num_experts,
                            .hidden = hidden,
                            .inter = inter,
                            .dtype = dtype,
                            .weight_dtype = dtype};
            p.workspace_bytes = b.ops().moe_down_workspace(p);
            const Buffer workspace = scratch(b, p.workspace_bytes);
            p.workspace = workspace.as();
            const int64_t weight_bytes = plan.num_touched * per_expert * dtype_bytes(dtype);
            b.run("moe_down", c, dtype,
                  {.bytes = static_cast<double>(weight_bytes + x.bytes() + out.bytes()),
                   .flops = 2.0 * static_cast<double>(plan.num_rows * per_expert),
                   .math = dtype,
                   .out = &out},
                  b.ops().moe_down, p);
        }
}

MMX_BENCH(moe_combine) {
    for (const Case& c : b.cases("moe", "moe_combine"))
        for (const DType dtype : b.dtypes()) {
            const Plan plan(b, c);
            const int64_t num_tokens = c["num_tokens"], topk = c["topk"], hidden = c["hidden"];
            const Buffer x = b.randn(dtype, num_tokens * topk * hidden);
            const Buffer shared = b.randn(dtype, num_tokens * hidden),
                         out = b.empty(dtype, num_tokens * hidden);
            const Buffer weights = b.randn(DType::kF32, num_tokens * topk);
            const MoeCombineParams p{.out = out.as(),
                                     .x = x.as(),
                                     .row_positions = plan.row_positions.as<int32_t>(),
                                     .topk_weights = weights.as<float>(),
                                     .shared = shared.as(),
                                     .num_tokens = num_tokens,
                                     .topk = topk,
                                     .hidden = hidden,
                                     .out_stride = hidden,
                                     .shared_stride = hidden,
                                     .dtype = dtype};
            b.run("moe_combine", c, dtype,
                  {.bytes = static_cast<double>(x.bytes() + shared.bytes() + out.bytes()),
                   .out = &out,
                   .baseline = "copy of shared",
                   .baseline_run = [&] { b.backend().copy(out.as(), shared.as(), out.bytes()); }},
                  b.ops().moe_combine, p);
        }
}
