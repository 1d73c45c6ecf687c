#include <limits>

#include "cpp/kernels/gated_act.h"
#include "cpp/kernels/row_gemm.h"

namespace mmx::cpu::MMX_CPU_ISA {

namespace {

/// Codes and scales of one row: the rule of Fp8QuantizeParams.
template <class T>
void quantize_row(e4m3* out, float* scale, const T* x, int64_t n) {
    for (int64_t begin = 0; begin < n; begin += kFp8Group) {
        const int64_t end = std::min(n, begin + kFp8Group);
        vf most = splat(kFp8LeastAmax);
        for (int64_t i = begin; i < end; i += kWidth) {
            const vf v = load_some(x + i, end - i);
            const vf magnitude = v < 0.0f ? -v : v;
            most = magnitude > most ? magnitude : most;  // false for NaN
        }
        float a = most[0];
        for (int l = 1; l < kWidth; ++l) a = std::max(a, most[l]);
        const float factor = kFp8Max / a;
        for (int64_t i = begin; i < end; ++i) out[i] = to_e4m3(to_float(x[i]) * factor);
        scale[begin / kFp8Group] = a / kFp8Max;
    }
}

template <class T>
void quantize_rows(void* out, float* scale, const T* x, int64_t x_stride, int64_t rows, int64_t cols) {
    const int64_t groups = ceil_div(cols, kFp8Group);
    parallel_for(rows, ceil_div(16384, cols), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
            quantize_row(static_cast<e4m3*>(out) + row * cols, scale + row * groups, x + row * x_stride,
                         cols);
    });
}

/// Rows as floats, scales applied.
AlignedArray<float> dequantize_rows(const void* x, const float* scale, int64_t rows, int64_t cols) {
    AlignedArray<float> wide(std::max<int64_t>(1, rows * cols));
    const int64_t groups = ceil_div(cols, kFp8Group);
    parallel_for(rows, ceil_div(16384, cols), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
            dequant_row(wide.get() + row * cols, static_cast<const e4m3*>(x) + row * cols,
                        scale + row * groups, cols);
    });
    return wide;
}

/// out[m] = x[m] . weight[e]^T for the rows of every expert.
template <class T>
void multiply(T* out, int64_t out_stride, const void* x, const float* x_scale, const void* weight,
              const float* weight_scale, const int32_t* offsets, int64_t num_experts, int64_t n, int64_t k) {
    const int64_t num_rows = offsets[num_experts];
    const AlignedArray<float> wide = dequantize_rows(x, x_scale, num_rows, k);
    const GroupedRows<float, e4m3> rows(wide.get(), k, num_rows, k, offsets, num_experts,
                                        [](int64_t row) { return row; });
    run_tasks(gemm_tasks(offsets, num_experts, n), num_rows * n * k, [&](const GemmTask& task) {
        alignas(64) float c[kBlockM * kBlockN];
        rows.multiply(c, task, expert_weight<e4m3>(weight, weight_scale, task.e, n, k), task.n0, task.n1);
        for (int64_t i = 0; i < task.m1 - task.m0; ++i)
            for (int64_t j = 0; j < task.n1 - task.n0; j += kWidth)
                store_some(out + (task.m0 + i) * out_stride + task.n0 + j, load(c + i * kBlockN + j),
                           task.n1 - task.n0 - j);
    });
}

}  // namespace

void fp8_quantize(const Fp8QuantizeParams& p, Stream) {
    dispatch_float(p.dtype, [&](auto t) {
        quantize_rows(p.out, p.scale, static_cast<const decltype(t)*>(p.x), p.x_stride, p.rows, p.cols);
    });
}

void fp8_linear(const Fp8LinearParams& p, Stream) {
    const int32_t offsets[2] = {0, static_cast<int32_t>(p.m)};
    dispatch_float(p.out_dtype, [&](auto t) {
        multiply(static_cast<decltype(t)*>(p.out), p.out_stride, p.x, p.x_scale, p.weight, p.weight_scale,
                 offsets, 1, p.n, p.k);
    });
}

void fp8_moe_gate_up(const Fp8MoeGateUpParams& p, Stream) {
    const int64_t num_rows = p.expert_offsets[p.num_local_experts];
    const AlignedArray<float> wide = dequantize_rows(p.x, p.x_scale, p.num_tokens, p.hidden);
    const AlignedArray<float> h(std::max<int64_t>(1, num_rows * p.inter));
    const GroupedRows<float, e4m3> x(wide.get(), p.hidden, p.num_tokens, p.hidden, p.expert_offsets,
                                     p.num_local_experts,
                                     [&](int64_t row) { return p.sorted_rows[row] / p.topk; });
    const auto tasks = gemm_tasks(p.expert_offsets, p.num_local_experts, p.inter);
    run_tasks(tasks, num_rows * 2 * p.inter * p.hidden, [&](const GemmTask& task) {
        const auto weight = expert_weight<e4m3>(p.weight, p.weight_scale, task.e, 2 * p.inter, p.hidden);
        alignas(64) float gate[kBlockM * kBlockN], up[kBlockM * kBlockN];
        x.multiply(gate, task, weight, task.n0, task.n1);
        x.multiply(up, task, weight, p.inter + task.n0, p.inter + task.n1);
        for (int64_t i = 0; i < task.m1 - task.m0; ++i)
            gated_act_row(h.get() + (task.m0 + i) * p.inter + task.n0, gate + i * kBlockN, up + i * kBlockN,
                          task.n1 - task.n0, p.activation, p.alpha, p.limit);
    });
    quantize_rows(p.out, p.out_scale, h.get(), p.inter, num_rows, p.inter);
}

void fp8_moe_down(const Fp8MoeDownParams& p, Stream) {
    dispatch_float(p.out_dtype, [&](auto t) {
        multiply(static_cast<decltype(t)*>(p.out), p.hidden, p.x, p.x_scale, p.weight, p.weight_scale,
                 p.expert_offsets, p.num_local_experts, p.hidden, p.inter);
    });
}

void mxfp8_dequant(const Mxfp8DequantParams& p, Stream) {
    float factors[256];
    for (int e = 0; e < 255; ++e) factors[e] = std::ldexp(1.0f, e - 127);
    factors[255] = std::numeric_limits<float>::quiet_NaN();
    const int64_t groups = ceil_div(p.cols, kMxfp8Group);
    dispatch_float(p.dtype, [&](auto t) {
        using T = decltype(t);
        parallel_for(p.rows, ceil_div(16384, p.cols), [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                const e4m3* x = static_cast<const e4m3*>(p.x) + row * p.cols;
                T* out = static_cast<T*>(p.out) + row * p.cols;
                for (int64_t i = 0; i < p.cols; i += kWidth) {
                    const float factor = factors[p.scale[row * groups + i / kMxfp8Group]];
                    store_some(out + i, load_some(x + i, p.cols - i) * factor, p.cols - i);
                }
            }
        });
    });
}

}  // namespace mmx::cpu::MMX_CPU_ISA
