#include "cpp/kernels/row_gemm.h"

namespace mmx::cpu::MMX_CPU_ISA {

namespace {

template <class T, class TOut>
void linear_typed(const LinearParams& p) {
    const PackedRows x(static_cast<const T*>(p.x), p.x_stride, p.m, p.k);
    std::vector<const float*> rows(static_cast<size_t>(p.m));
    for (int64_t row = 0; row < p.m; ++row) rows[static_cast<size_t>(row)] = x.row(row);
    const WeightRows<T> weight{static_cast<const T*>(p.weight), p.k, nullptr, 0};
    const int32_t offsets[2] = {0, static_cast<int32_t>(p.m)};
    run_tasks(gemm_tasks(offsets, 1, p.n), p.m * p.n * p.k, [&](const GemmTask& task) {
        alignas(64) float c[kBlockM * kBlockN];
        gemm_block(c, &rows[static_cast<size_t>(task.m0)], task.m1 - task.m0, weight, task.n0, task.n1);
        for (int64_t i = 0; i < task.m1 - task.m0; ++i) {
            TOut* out = static_cast<TOut*>(p.out) + (task.m0 + i) * p.out_stride + task.n0;
            for (int64_t j = 0; j < task.n1 - task.n0; j += kWidth)
                store_some(out + j, load(c + i * kBlockN + j), task.n1 - task.n0 - j);
        }
    });
}

}  // namespace

void linear(const LinearParams& p, Stream) {
    dispatch_float(p.dtype, [&](auto t) {
        using T = decltype(t);
        if (p.out_dtype == DType::kF32)
            linear_typed<T, float>(p);
        else
            linear_typed<T, T>(p);
    });
}

}  // namespace mmx::cpu::MMX_CPU_ISA
