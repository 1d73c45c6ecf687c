#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/gated_act.cuh"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/launchers.h"

namespace mmx::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kRun = 8;

template <class T>
__global__ void __launch_bounds__(kThreads) gated_act_kernel(GatedActParams p, bool packable) {
    const int64_t token = blockIdx.x;
    const int64_t i = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kRun;
    ptx::let_successors_start();
    ptx::wait_for_predecessors();
    if (i >= p.inter) return;
    const T* gate_up = static_cast<const T*>(p.gate_up) + token * p.gate_up_stride + i;
    float gate[kRun], up[kRun];
    load_run(gate, gate_up, p.inter - i, packable);
    load_run(up, gate_up + p.inter, p.inter - i, packable);
#pragma unroll
    for (int j = 0; j < kRun; ++j) gate[j] = gated_act(gate[j], up[j], p.activation, p.alpha, p.limit);
    store_run(static_cast<T*>(p.out) + token * p.out_stride + i, gate, p.inter - i, packable);
}

}  // namespace

void gated_act(const GatedActParams& p, Stream stream) {
    dispatch_float(p.dtype, [&](auto t) {
        using T = decltype(t);
        const bool packable = is_packable<T, kRun>(p.gate_up, {p.gate_up_stride, p.inter}) &&
                              is_packable<T, kRun>(p.out, {p.out_stride});
        const dim3 grid(static_cast<unsigned>(p.num_tokens),
                        static_cast<unsigned>(ceil_div(p.inter, kThreads * kRun)));
        LaunchChain{"gated_act", grid, kThreads, 0, stream}(gated_act_kernel<T>, p, packable);
    });
}

}  // namespace mmx::cuda
