#include "cpp/core/math.h"
#include "cuda/common/chain.h"
#include "cuda/common/peers.cuh"
#include "cuda/common/ptx/grid.cuh"
#include "cuda/common/quantize.cuh"
#include "cuda/common/row_sum.cuh"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/launchers.h"

namespace mmx::cuda {

namespace {

constexpr int kRun = 8, kMaxThreads = 1024;

/// Neighbouring values of a row, and the words as which they travel.
template <class T>
union Run {
    static constexpr int kWords = kRun * sizeof(T) / 4;
    Pack<T, kRun> values;
    uint32_t words[kWords];
};

/// Where this thread's run of a row lies in the inboxes in one exchange. Pair `i` of all threads is in one
/// piece: between devices a store that fills its sectors takes half the time.
template <class T>
struct Exchange {
    static constexpr int kPairs = Run<T>::kWords / 2;
    const Peers& peers;
    uint32_t epoch;
    int64_t token, word, stride;

    __device__ void send(int to, const Run<T>& run) const {
        uint64_t* const first = peers.inboxes[to] + peers.row(epoch, peers.rank, token) + word;
#pragma unroll
        for (int i = 0; i < kPairs; ++i)
            send_pair(first + i * stride, epoch, run.words[2 * i], run.words[2 * i + 1]);
    }

    /// Runs of `kRuns` senders.
    template <int kRuns>
    __device__ void receive(Run<T> (&runs)[kRuns], const int (&senders)[kRuns]) const {
        uint32_t places[kRuns * kPairs], x[kRuns * kPairs], y[kRuns * kPairs];
#pragma unroll
        for (int i = 0; i < kRuns * kPairs; ++i)
            places[i] = static_cast<uint32_t>(peers.row(epoch, senders[i / kPairs], token) + word +
                                              i % kPairs * stride);
        receive_pairs(peers.inboxes[peers.rank], places, epoch, peers.timeout_ns, x, y);
#pragma unroll
        for (int i = 0; i < kRuns * kPairs; ++i) {
            runs[i / kPairs].words[i % kPairs * 2] = x[i];
            runs[i / kPairs].words[i % kPairs * 2 + 1] = y[i];
        }
    }

    /// The ranks' runs, in order, of which `own` is this rank's; kAtOnce are waited for together.
    template <int kAtOnce>
    __device__ Run<T> sum(const Run<T>& own) const {
        float total[kRun] = {};
        const auto add = [&](const Run<T>& run) {
#pragma unroll
            for (int j = 0; j < kRun; ++j) total[j] += to_float(run.values.v[j]);
        };
        const int others = static_cast<int>(peers.num_ranks) - 1, rank = static_cast<int>(peers.rank);
        for (int first = 0; first < others; first += kAtOnce) {
            Run<T> runs[kAtOnce];
            int senders[kAtOnce];
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                const int other = min(first + i, others - 1);
                senders[i] = other + (other >= rank);
            }
            receive(runs, senders);
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                if (first + i >= others) break;
                if (first + i == rank) add(own);
                add(runs[i]);
            }
        }
        if (rank == others) add(own);
        Run<T> result;
#pragma unroll
        for (int j = 0; j < kRun; ++j) result.values.v[j] = from_float<T>(total[j]);
        return result;
    }
};

/// A block per row, a run per thread, which stays in registers from the sum to the norm. Two ranks send each
/// other their rows; of more, each sums a slice of every row and sends it to the others, which is less by
/// 2 / num_ranks. Every block needs its twin on the other ranks only, and twins are dispatched in the same
/// order, so that no grid can be too large for the device.
template <class T, class W, bool kSlices>
__global__ void __launch_bounds__(kMaxThreads)
    all_reduce_add_rms_norm_kernel(AllReduceAddRmsNormParams params, bool packable) {
    const AddRmsNormParams& p = params.norm;
    const Peers& peers = params.peers;
    const int num_ranks = static_cast<int>(peers.num_ranks), rank = static_cast<int>(peers.rank);
    const int64_t token = blockIdx.x, i = static_cast<int64_t>(threadIdx.x) * kRun;
    const bool active = i < p.hidden;
    T* const residual = static_cast<T*>(p.residual) + token * p.residual_stride + i;
    T* const out = static_cast<T*>(p.out) + token * p.out_stride + i;

    // Why not as floats: registers are what limits a block.
    Pack<W, kRun> gain;
    const W* const weight = static_cast<const W*>(p.weight) + i;
    if (active && packable) gain = *reinterpret_cast<const Pack<W, kRun>*>(weight);
    ptx::let_successors_start();
    ptx::wait_for_predecessors();

    uint32_t epoch = 0;
    float squares = 0;
    if (num_ranks > 1) epoch = Peers::next(static_cast<uint32_t>(peers.epochs[token]));
    const Exchange<T> exchange{peers, epoch, token, static_cast<int64_t>(threadIdx.x) * 2,
                               p.hidden / kRun * 2};
    // Who sums this run; every rank some, so that all hear from all in an exchange.
    const int runs = static_cast<int>(p.hidden / kRun);
    const int owner = kSlices ? static_cast<int>((threadIdx.x + 1) * num_ranks - 1) / runs : rank;
    Run<T> run;
    Pack<T, kRun> stream;
    if (active) {
        run.values =
            *reinterpret_cast<const Pack<T, kRun>*>(static_cast<const T*>(p.x) + token * p.x_stride + i);
        if constexpr (kSlices) {
            if (owner != rank) exchange.send(owner, run);
        } else {
            for (int r = 0; r < num_ranks; ++r)
                if (r != rank) exchange.send(r, run);
        }
        stream = *reinterpret_cast<const Pack<T, kRun>*>(residual);
        if (owner == rank) {
            run = exchange.template sum<kSlices ? 3 : 1>(run);
            if constexpr (kSlices)
                for (int r = 0; r < num_ranks; ++r)
                    if (r != rank) exchange.send(r, run);
        }
    }
    if constexpr (kSlices) {
        // Why: lanes that wait for another rank must not keep those from their sums that it waits for.
        __syncwarp();
        if (active && owner != rank) {
            Run<T> total[1];
            const int senders[] = {owner};
            exchange.receive(total, senders);
            run = total[0];
        }
    }
    float sum[kRun];
    if (active) {
#pragma unroll
        for (int j = 0; j < kRun; ++j) {
            sum[j] = to_float(from_float<T>(to_float(stream.v[j]) + to_float(run.values.v[j])));
            squares += sum[j] * sum[j];
        }
        store_run(residual, sum, kRun, true);
    }
    const float inv_rms = rsqrtf(row_sum(squares) / static_cast<float>(p.hidden) + p.eps);
    // Behind the barrier of row_sum: all threads have read it.
    if (num_ranks > 1 && threadIdx.x == 0) peers.epochs[token] = static_cast<int32_t>(epoch);
    if (!active) return;
    const float shift = p.gemma ? 1.0f : 0.0f;
#pragma unroll
    for (int j = 0; j < kRun; ++j)
        sum[j] = to_float(
            from_float<T>(sum[j] * (inv_rms * (to_float(packable ? gain.v[j] : weight[j]) + shift))));
    store_run(out, sum, kRun, true);
    if (params.codes == nullptr) return;
    const int64_t at = token * p.hidden + i;
    quantize_group(static_cast<e4m3*>(params.codes) + at, params.scale + at / kFp8Group, sum, true);
}

}  // namespace

void all_reduce_add_rms_norm(const AllReduceAddRmsNormParams& params, Stream stream) {
    const AddRmsNormParams& p = params.norm;
    dispatch_float(p.dtype, [&](auto t) {
        dispatch_float(p.weight_dtype, [&](auto w) {
            using T = decltype(t);
            using W = decltype(w);
            MMX_CHECK(
                (is_packable<T, kRun>(p.x, {p.x_stride}) && is_packable<T, kRun>(p.out, {p.out_stride}) &&
                 is_packable<T, kRun>(p.residual, {p.residual_stride}) &&
                 is_packable<e4m3, kRun>(params.codes, {})),
                "all_reduce_add_rms_norm: rows of x, residual, out and codes must be aligned to 16 bytes");
            const auto threads = static_cast<unsigned>(align_up(ceil_div(p.hidden, kRun), 32));
            const LaunchChain chain{"all_reduce_add_rms_norm", dim3(static_cast<unsigned>(p.num_tokens)),
                                    dim3(threads), 0, stream};
            const bool packable = is_packable<W, kRun>(p.weight, {});
            if (params.peers.num_ranks > 2)
                chain(all_reduce_add_rms_norm_kernel<T, W, true>, params, packable);
            else
                chain(all_reduce_add_rms_norm_kernel<T, W, false>, params, packable);
        });
    });
}

}  // namespace mmx::cuda
