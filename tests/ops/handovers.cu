// The ways in which kernels of this library hand words over through shared memory, each alone in a kernel,
// right and with one step left out or too late. tests/ops/sanitize.py runs them to learn which of them
// racecheck follows: it believes its reports, or their absence, accordingly.

#include <cstdint>
#include <cstdio>
#include <cstring>

#include "cuda/common/ptx/cluster.cuh"
#include "cuda/common/ptx/multicast.cuh"
#include "cuda/common/ptx/tma.cuh"
#include "cuda/common/ptx/wgmma_n.cuh"
#include "cuda/common/ring.cuh"

namespace {

namespace ptx = mmx::cuda::ptx;

constexpr int kStages = 2, kTurns = 6;

__device__ __forceinline__ int lane_idx() { return static_cast<int>(threadIdx.x) % 32; }
__device__ __forceinline__ int warp_idx() { return static_cast<int>(threadIdx.x) / 32; }

/// A ring that warp 0 fills with a row a turn and warps 1 and 2 empty. How the row is written, who arrives
/// when it is there, who waits for it, and who arrives when it was read, differ.
struct Ring {
    int rows[kStages][32];
    uint64_t full[kStages], empty[kStages];

    __device__ __forceinline__ void init(int full_arrivals, int empty_arrivals) {
        if (threadIdx.x == 0) {
            for (int i = 0; i < kStages; ++i) {
                ptx::barrier_init(full[i], full_arrivals);
                ptx::barrier_init(empty[i], empty_arrivals);
            }
            ptx::barrier_init_done();
        }
        __syncthreads();
    }
    template <class Write>
    __device__ __forceinline__ void fill(Write&& write) {
        mmx::cuda::Ring<kStages> at(1);
        for (int turn = 0; turn < kTurns; ++turn, at.advance()) {
            ptx::barrier_wait(empty[at.at], at.parity);
            write(at.at, turn);
        }
    }
    template <class Read>
    __device__ __forceinline__ void drain(Read&& read) {
        mmx::cuda::Ring<kStages> at(0);
        for (int turn = 0; turn < kTurns; ++turn, at.advance()) read(at.at, at.parity);
    }
};

/// One thread writes and arrives; all readers wait and arrive. Broken: they read, then wait.
template <bool kBroken>
__global__ void thread_to_threads(int* out, const int*) {
    __shared__ Ring ring;
    ring.init(1, 64);
    if (warp_idx() == 0) {
        if (lane_idx() == 0)
            ring.fill([&](int stage, int turn) {
                ring.rows[stage][0] = turn;
                ptx::barrier_arrive(ring.full[stage]);
            });
    } else {
        ring.drain([&](int stage, int parity) {
            if (!kBroken) ptx::barrier_wait(ring.full[stage], parity);
            out[threadIdx.x] += ring.rows[stage][0];
            if (kBroken) ptx::barrier_wait(ring.full[stage], parity);
            ptx::barrier_arrive(ring.empty[stage]);
        });
    }
}

/// Every lane writes and arrives. Broken as above.
template <bool kBroken>
__global__ void lanes_to_threads(int* out, const int*) {
    __shared__ Ring ring;
    ring.init(32, 64);
    if (warp_idx() == 0) {
        ring.fill([&](int stage, int turn) {
            ring.rows[stage][lane_idx()] = turn;
            ptx::barrier_arrive(ring.full[stage]);
        });
    } else {
        ring.drain([&](int stage, int parity) {
            if (!kBroken) ptx::barrier_wait(ring.full[stage], parity);
            out[threadIdx.x] += ring.rows[stage][31 - lane_idx()];
            if (kBroken) ptx::barrier_wait(ring.full[stage], parity);
            ptx::barrier_arrive(ring.empty[stage]);
        });
    }
}

/// Every lane writes; behind __syncwarp, which broken leaves out, one arrives for all.
template <bool kBroken>
__global__ void lane_arrives_for_warp(int* out, const int*) {
    __shared__ Ring ring;
    ring.init(1, 64);
    if (warp_idx() == 0) {
        ring.fill([&](int stage, int turn) {
            ring.rows[stage][lane_idx()] = turn;
            if (!kBroken) __syncwarp();
            if (lane_idx() == 0) ptx::barrier_arrive(ring.full[stage]);
        });
    } else {
        ring.drain([&](int stage, int parity) {
            ptx::barrier_wait(ring.full[stage], parity);
            out[threadIdx.x] += ring.rows[stage][31 - lane_idx()];
            ptx::barrier_arrive(ring.empty[stage]);
        });
    }
}

/// Every lane reads; behind __syncwarp, which broken leaves out, one arrives for all.
template <bool kBroken>
__global__ void lane_leaves_for_warp(int* out, const int*) {
    __shared__ Ring ring;
    ring.init(32, 2);
    if (warp_idx() == 0) {
        ring.fill([&](int stage, int turn) {
            ring.rows[stage][lane_idx()] = turn;
            ptx::barrier_arrive(ring.full[stage]);
        });
    } else {
        ring.drain([&](int stage, int parity) {
            ptx::barrier_wait(ring.full[stage], parity);
            out[threadIdx.x] += ring.rows[stage][31 - lane_idx()];
            if (!kBroken) __syncwarp();
            if (lane_idx() == 0) ptx::barrier_arrive(ring.empty[stage]);
        });
    }
}

/// One lane waits; behind __syncwarp all read. Broken: they read, then __syncwarp.
template <bool kBroken>
__global__ void lane_waits_for_warp(int* out, const int*) {
    __shared__ Ring ring;
    ring.init(1, 64);
    if (warp_idx() == 0) {
        if (lane_idx() == 0)
            ring.fill([&](int stage, int turn) {
                ring.rows[stage][0] = turn;
                ptx::barrier_arrive(ring.full[stage]);
            });
    } else {
        ring.drain([&](int stage, int parity) {
            if (lane_idx() == 0) ptx::barrier_wait(ring.full[stage], parity);
            if (!kBroken) __syncwarp();
            out[threadIdx.x] += ring.rows[stage][0];
            if (kBroken) __syncwarp();
            ptx::barrier_arrive(ring.empty[stage]);
        });
    }
}

/// The copy engine writes and completes on the barrier. Broken: read, then wait.
template <bool kBroken>
__global__ void copy_engine_to_threads(int* out, const int* in) {
    __shared__ alignas(128) Ring ring;
    ring.init(1, 64);
    if (warp_idx() == 0) {
        if (lane_idx() == 0)
            ring.fill([&](int stage, int turn) {
                ptx::barrier_arrive_expect(ring.full[stage], 128);
                asm volatile(
                    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 128, "
                    "[%2];" ::"r"(ptx::smem_address(ring.rows[stage])),
                    "l"(in + turn * 32), "r"(ptx::smem_address(&ring.full[stage]))
                    : "memory");
            });
    } else {
        ring.drain([&](int stage, int parity) {
            if (!kBroken) ptx::barrier_wait(ring.full[stage], parity);
            out[threadIdx.x] += ring.rows[stage][lane_idx()];
            if (kBroken) ptx::barrier_wait(ring.full[stage], parity);
            ptx::barrier_arrive(ring.empty[stage]);
        });
    }
}

/// Lanes copy in the background; the barrier hears of it when the copies have landed. Broken: it hears at
/// once.
template <bool kBroken>
__global__ void copies_to_threads(int* out, const int* in) {
    __shared__ Ring ring;
    ring.init(32, 64);
    if (warp_idx() == 0) {
        ring.fill([&](int stage, int turn) {
            ptx::copy_async_4(ptx::smem_address(&ring.rows[stage][lane_idx()]), in + turn * 32 + lane_idx());
            if (kBroken)
                ptx::barrier_arrive(ring.full[stage]);
            else
                ptx::barrier_arrive_after_copies(ring.full[stage]);
        });
        ptx::commit_copies();
        ptx::wait_for_copies<0>();
    } else {
        ring.drain([&](int stage, int parity) {
            ptx::barrier_wait(ring.full[stage], parity);
            out[threadIdx.x] += ring.rows[stage][31 - lane_idx()];
            ptx::barrier_arrive(ring.empty[stage]);
        });
    }
}

/// Readers are the tensor cores. Broken: the product begins before the wait.
template <bool kBroken>
__global__ void threads_to_tensor_cores(int* out, const int*) {
    __shared__ alignas(1024) char rows[64 * 128];
    __shared__ uint64_t full;
    if (threadIdx.x == 0) {
        ptx::barrier_init(full, 32);
        ptx::barrier_init_done();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        float sum[4] = {};
        if (!kBroken) ptx::barrier_wait(full, 0);
        const uint64_t operand = ptx::wgmma_operand(ptx::smem_address(rows));
        ptx::wgmma_begin();
        ptx::Wgmma<8>::bf16(sum, operand, operand, false);
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();
        out[threadIdx.x] = static_cast<int>(sum[0]);
    } else if (threadIdx.x < 160) {
        for (int i = lane_idx(); i < 64 * 32; i += 32) reinterpret_cast<int*>(rows)[i] = i;
        ptx::fence_async_proxy();
        ptx::barrier_arrive(full);
    }
}

/// Warp 0 writes for warp 2, which hears of it from warp 1. Broken: warp 1 does not wait.
template <bool kBroken>
__global__ void through_another_warp(int* out, const int*) {
    __shared__ int row[32];
    __shared__ uint64_t first, second;
    if (threadIdx.x == 0) {
        ptx::barrier_init(first, 32);
        ptx::barrier_init(second, 32);
        ptx::barrier_init_done();
    }
    __syncthreads();
    if (warp_idx() == 0) {
        row[lane_idx()] = 1;
        ptx::barrier_arrive(first);
    } else if (warp_idx() == 1) {
        if (!kBroken) ptx::barrier_wait(first, 0);
        ptx::barrier_arrive(second);
    } else {
        ptx::barrier_wait(second, 0);
        out[lane_idx()] = row[31 - lane_idx()];
    }
}

/// A barrier of two of the three warps. Broken: read, then the barrier.
template <bool kBroken>
__global__ void named_barrier_of_some(int* out, const int*) {
    __shared__ int row[32];
    if (warp_idx() == 2) return;
    for (int turn = 0; turn < kTurns; ++turn) {
        if (warp_idx() == 0) row[lane_idx()] = turn;
        if (!kBroken) ptx::named_barrier(1, 64);
        if (warp_idx() == 1) out[lane_idx()] += row[31 - lane_idx()];
        if (kBroken) ptx::named_barrier(1, 64);
        ptx::named_barrier(2, 64);
    }
}

/// Eight warps behind four others; each writes a row, some read all rows, between barriers of one number.
/// Broken: without the barrier before the reading.
template <bool kBroken>
__global__ void named_barrier_again(int* out, const int*) {
    __shared__ float rows[8][128], sums[128];
    if (warp_idx() < 4) return;
    const int thread = static_cast<int>(threadIdx.x) - 128;
    for (int turn = 0; turn < kTurns; ++turn) {
        for (int i = lane_idx(); i < 104; i += 32) rows[warp_idx() - 4][i] = static_cast<float>(turn + i);
        if (!kBroken) ptx::named_barrier(1, 256);
        float sum = 0;
        if (thread < 104)
            for (int i = 0; i < 8; ++i) sum += rows[i][thread];
        if (thread < 104) sums[thread] = sum;
        ptx::named_barrier(1, 256);
        out[thread] += static_cast<int>(sums[thread % 104]);
        ptx::named_barrier(1, 256);
    }
}

/// As above, while another barrier, at which half of the warps only count, completes in between.
template <bool kBroken>
__global__ void named_barrier_beside_arrivals(int* out, const int*) {
    __shared__ float rows[8][128];
    if (warp_idx() < 4) return;
    const int thread = static_cast<int>(threadIdx.x) - 128;
    for (int turn = 0; turn < kTurns; ++turn) {
        if (thread < 128) {
            ptx::named_barrier_arrive(4, 256);
        } else {
            __nanosleep(100 * warp_idx());
            ptx::named_barrier(4, 256);
        }
        for (int i = lane_idx(); i < 96; i += 32) rows[warp_idx() - 4][i] = static_cast<float>(turn + i);
        if (!kBroken) ptx::named_barrier(1, 256);
        float sum = 0;
        if (thread < 96)
            for (int i = 0; i < 8; ++i) sum += rows[i][thread];
        ptx::named_barrier(1, 256);
        out[thread] += static_cast<int>(sum);
        ptx::named_barrier(1, 256);
    }
}

/// Readers count at a barrier without waiting there; the writer waits. Broken: they count, then read.
template <bool kBroken>
__global__ void arrive_without_waiting(int* out, const int*) {
    __shared__ int row[32];
    if (warp_idx() == 2) return;
    for (int turn = 0; turn < kTurns; ++turn) {
        if (warp_idx() == 0) {
            row[lane_idx()] = turn;
            ptx::named_barrier(1, 64);
            ptx::named_barrier(2, 64);
        } else {
            ptx::named_barrier(1, 64);
            if (kBroken) ptx::named_barrier_arrive(2, 64);
            out[lane_idx()] += row[31 - lane_idx()];
            if (!kBroken) ptx::named_barrier_arrive(2, 64);
        }
    }
}

/// Lanes of a warp, behind __syncwarp, which broken leaves out.
template <bool kBroken>
__global__ void inside_warp(int* out, const int*) {
    __shared__ int rows[3][32];
    for (int turn = 0; turn < kTurns; ++turn) {
        rows[warp_idx()][lane_idx()] = turn;
        if (!kBroken) __syncwarp();
        out[threadIdx.x] += rows[warp_idx()][31 - lane_idx()];
        __syncwarp();
    }
}

/// One thread says how far it is, another looks now and then: both words and order are whole by being
/// volatile, and nothing else depends on them. There is no broken one.
template <bool kBroken>
__global__ void polled(int* out, const int*) {
    __shared__ int progress;
    if (threadIdx.x == 0) progress = 0;
    __syncthreads();
    if (threadIdx.x == 0)
        for (int turn = 1; turn <= kTurns; ++turn) static_cast<volatile int&>(progress) = turn;
    if (threadIdx.x == 64) {
        const volatile int& reached = progress;
        while (reached < kTurns) __nanosleep(100);
        out[0] = reached;
    }
}

/// A block stores into its neighbour's memory and completes on its barrier. Broken: read, then wait.
template <bool kBroken>
__global__ void __cluster_dims__(2, 1, 1) to_another_block(int* out, const int*) {
    __shared__ alignas(16) float row[4];
    __shared__ uint64_t full;
    if (threadIdx.x == 0) {
        ptx::barrier_init(full, 1);
        ptx::barrier_init_done();
        ptx::barrier_arrive_expect(full, sizeof(row));
    }
    __syncthreads();
    ptx::cluster_arrive();
    ptx::cluster_wait();
    const int other = 1 - static_cast<int>(blockIdx.x) % 2;
    if (threadIdx.x == 0)
        ptx::store_remote(ptx::cluster_address(ptx::smem_address(row), other), 1, 2, 3, 4,
                          ptx::cluster_address(ptx::smem_address(&full), other));
    if (!kBroken) ptx::barrier_wait(full, 0);
    out[threadIdx.x] = static_cast<int>(row[threadIdx.x % 4]);
    if (kBroken) ptx::barrier_wait(full, 0);
    ptx::cluster_arrive();
    ptx::cluster_wait();
}

int failures = 0;

/// Says which kernel ran; what racecheck printed since the last such line is about it.
void done(const char* name, bool broken) {
    const cudaError_t error = cudaDeviceSynchronize();
    failures += error != cudaSuccess;
    std::printf("handover %s %s %s\n", name, broken ? "broken" : "right", cudaGetErrorString(error));
    std::fflush(stdout);
}

}  // namespace

int main() {
    int *in = nullptr, *out = nullptr;
    if (cudaMalloc(&in, 4096) != cudaSuccess || cudaMalloc(&out, 4096) != cudaSuccess ||
        cudaMemset(in, 0, 4096) != cudaSuccess || cudaMemset(out, 0, 4096) != cudaSuccess)
        return 2;
#define RUN(name, blocks, threads)             \
    name<false><<<blocks, threads>>>(out, in); \
    done(#name, false);                        \
    name<true><<<blocks, threads>>>(out, in);  \
    done(#name, true)
    RUN(thread_to_threads, 1, 96);
    RUN(lanes_to_threads, 1, 96);
    RUN(lane_arrives_for_warp, 1, 96);
    RUN(lane_leaves_for_warp, 1, 96);
    RUN(lane_waits_for_warp, 1, 96);
    RUN(copy_engine_to_threads, 1, 96);
    RUN(copies_to_threads, 1, 96);
    RUN(threads_to_tensor_cores, 1, 160);
    RUN(through_another_warp, 1, 96);
    RUN(named_barrier_of_some, 1, 96);
    RUN(named_barrier_again, 2, 384);
    RUN(named_barrier_beside_arrivals, 8, 384);
    RUN(arrive_without_waiting, 1, 96);
    RUN(inside_warp, 1, 96);
    RUN(polled, 1, 96);
    RUN(to_another_block, 2, 96);
#undef RUN
    return failures > 0;
}
