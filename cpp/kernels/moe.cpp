#include "cpp/kernels/vec.h"

namespace mmx::cpu::MMX_CPU_ISA {

/// Counting sort on one thread: it moves a few integers per row.
void moe_plan(const MoePlanParams& p, Stream) {
    const int64_t num_rows = p.num_tokens * p.topk;
    const auto is_local = [&](int64_t expert) { return expert >= 0 && expert < p.num_local_experts; };
    std::fill(p.expert_offsets, p.expert_offsets + p.num_local_experts + 1, 0);
    for (int64_t row = 0; row < num_rows; ++row) {
        const int64_t expert = p.topk_ids[row] - p.first_expert;
        if (is_local(expert)) ++p.expert_offsets[expert + 1];
    }
    for (int64_t e = 0; e < p.num_local_experts; ++e) p.expert_offsets[e + 1] += p.expert_offsets[e];
    // offsets[e] serves as the cursor of expert e and ends as offsets[e + 1]; the shift below puts it right.
    for (int64_t row = 0; row < num_rows; ++row) {
        const int64_t expert = p.topk_ids[row] - p.first_expert;
        p.row_positions[row] = is_local(expert) ? p.expert_offsets[expert]++ : -1;
        if (is_local(expert)) p.sorted_rows[p.row_positions[row]] = static_cast<int32_t>(row);
    }
    for (int64_t e = p.num_local_experts; e > 0; --e) p.expert_offsets[e] = p.expert_offsets[e - 1];
    p.expert_offsets[0] = 0;
}

void moe_combine(const MoeCombineParams& p, Stream) {
    dispatch_float(p.dtype, [&](auto t) {
        using T = decltype(t);
        const T* x = static_cast<const T*>(p.x);
        parallel_for(p.num_tokens, ceil_div(16384, p.topk * p.hidden), [&](int64_t begin, int64_t end) {
            for (int64_t token = begin; token < end; ++token) {
                T* out = static_cast<T*>(p.out) + token * p.out_stride;
                const T* shared =
                    p.shared ? static_cast<const T*>(p.shared) + token * p.shared_stride : nullptr;
                for (int64_t i = 0; i < p.hidden; i += kWidth) {
                    vf sum = {};
                    for (int64_t row = token * p.topk; row < (token + 1) * p.topk; ++row) {
                        if (p.row_positions[row] < 0) continue;
                        const T* from = x + p.row_positions[row] * p.hidden + i;
                        sum = fma(splat(p.topk_weights[row]), load_some(from, p.hidden - i), sum);
                    }
                    if (shared) sum += load_some(shared + i, p.hidden - i);
                    store_some(out + i, sum, p.hidden - i);
                }
            }
        });
    });
}

}  // namespace mmx::cpu::MMX_CPU_ISA
