#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/peers.cuh"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/row_sum.cuh"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/launchers.h"

namespace mmx::cuda {

namespace {

constexpr int kRun = 8, kMaxThreads = 1024;

/// A block per row, a run per thread, which stays in registers from the sum to the norm. Every block needs
/// its twin on the other ranks only, and twins are dispatched in the same order, so that no grid can be too
/// large for the device. Pair `i` of all threads lies in one piece: between devices a store that fills its
/// sectors takes half the time.
template <class T, class W>
__global__ void __launch_bounds__(kMaxThreads)
    all_reduce_add_rms_norm_kernel(AllReduceAddRmsNormParams p, bool packable) {
    constexpr int kWords = kRun * sizeof(T) / 4;
    union Run {
        Pack<T, kRun> values;
        uint32_t words[kWords];
    };
    const Peers& peers = p.peers;
    const int64_t token = blockIdx.x, i = static_cast<int64_t>(threadIdx.x) * kRun;
    const int64_t word = static_cast<int64_t>(threadIdx.x) * 2, pairs = p.hidden / kRun * 2;
    const bool active = i < p.hidden;
    T* const residual = static_cast<T*>(p.residual) + token * p.residual_stride + i;
    T* const out = static_cast<T*>(p.out) + token * p.out_stride + i;

    float gain[kRun], total[kRun] = {}, sum[kRun];
    if (active) load_run(gain, static_cast<const W*>(p.weight) + i, kRun, packable);
    ptx::let_successors_start();
    ptx::wait_for_predecessors();

    uint32_t epoch = 0;
    float squares = 0;
    if (peers.num_ranks > 1) epoch = Peers::next(static_cast<uint32_t>(peers.epochs[token]));
    if (active) {
        Run own;
        own.values =
            *reinterpret_cast<const Pack<T, kRun>*>(static_cast<const T*>(p.x) + token * p.x_stride + i);
        for (int r = 0; r < peers.num_ranks; ++r) {
            if (r == peers.rank) continue;
            uint64_t* const to = peers.inboxes[r] + peers.row(epoch, peers.rank, token) + word;
#pragma unroll
            for (int w = 0; w < kWords; w += 2)
                send_pair(to + w / 2 * pairs, epoch, own.words[w], own.words[w + 1]);
        }
        load_run(sum, residual, kRun, true);
        for (int r = 0; r < peers.num_ranks; ++r) {
            Run part = own;
            if (r != peers.rank) {
                const uint64_t* const from = peers.inboxes[peers.rank] + peers.row(epoch, r, token) + word;
#pragma unroll
                for (int w = 0; w < kWords; w += 2)
                    receive_pair(from + w / 2 * pairs, epoch, peers.timeout_ns, part.words[w],
                                 part.words[w + 1]);
            }
#pragma unroll
            for (int j = 0; j < kRun; ++j) total[j] += to_float(part.values.v[j]);
        }
#pragma unroll
        for (int j = 0; j < kRun; ++j) {
            sum[j] = to_float(from_float<T>(sum[j] + to_float(from_float<T>(total[j]))));
            squares += sum[j] * sum[j];
        }
        store_run(residual, sum, kRun, true);
    }
    const float inv_rms = rsqrtf(row_sum(squares) / static_cast<float>(p.hidden) + p.eps);
    // Behind the barrier of row_sum: all threads have read it.
    if (peers.num_ranks > 1 && threadIdx.x == 0) peers.epochs[token] = static_cast<int32_t>(epoch);
    if (!active) return;
    const float shift = p.gemma ? 1.0f : 0.0f;
#pragma unroll
    for (int j = 0; j < kRun; ++j) sum[j] *= inv_rms * (gain[j] + shift);
    store_run(out, sum, kRun, true);
}

}  // namespace

void all_reduce_add_rms_norm(const AllReduceAddRmsNormParams& p, Stream stream) {
    dispatch_float(p.dtype, [&](auto t) {
        dispatch_float(p.weight_dtype, [&](auto w) {
            using T = decltype(t);
            using W = decltype(w);
            MMX_CHECK(
                (is_packable<T, kRun>(p.x, {p.x_stride}) && is_packable<T, kRun>(p.out, {p.out_stride}) &&
                 is_packable<T, kRun>(p.residual, {p.residual_stride})),
                "all_reduce_add_rms_norm: rows of x, residual and out must be aligned to 16 bytes");
            const auto threads = static_cast<unsigned>(align_up(ceil_div(p.hidden, kRun), 32));
            LaunchChain{"all_reduce_add_rms_norm", dim3(static_cast<unsigned>(p.num_tokens)), dim3(threads),
                        0,
                        stream}(all_reduce_add_rms_norm_kernel<T, W>, p, is_packable<W, kRun>(p.weight, {}));
        });
    });
}

}  // namespace mmx::cuda
