#include "cpp/kernels/row_gemm.h"

namespace mmx::cpu::MMX_CPU_ISA {

namespace {

template <class T, class TOut>
void linear_typed(const LinearParams& p) {
    const int32_t offsets[2] = {0, static_cast<int32_t>(p.m)};
    const GroupedRows<T, T> x(static_cast<const T*>(p.x), p.x_stride, p.m, p.k, offsets, 1,
                              [](int64_t row) { return row; });
    const WeightRows<T> weight{static_cast<const T*>(p.weight), p.k, nullptr, 0};
    run_tasks(gemm_tasks(offsets, 1, p.n), p.m * p.n * p.k, [&](const GemmTask& task) {
        alignas(64) float c[kBlockM * kBlockN];
        x.multiply(c, task, weight, task.n0, task.n1);
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
