#pragma once

#include <cstdint>

#include "cuda/common/reduce.cuh"

/// Order statistics by one block, without sorting. Weights and masses are integers, so that sums do not
/// depend on the order in which threads add.
namespace mmx::cuda {

inline constexpr uint32_t kNanKey = 0xFFFFFFFFu;

/// Unsigned keys in the order of the floats; -0 equals 0, NaN is above all.
__device__ __forceinline__ uint32_t order_key(float x) {
    if (x != x) return kNanKey;
    const uint32_t u = __float_as_uint(x == 0.0f ? 0.0f : x);
    return u ^ (u >> 31 ? 0xFFFFFFFFu : 0x80000000u);
}

__device__ __forceinline__ float key_value(uint32_t key) {
    return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xFFFFFFFFu));
}

__device__ __forceinline__ uint64_t warp_sum(uint64_t x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(kFull, x, offset);
    return x;
}

/// Shared memory of the functions below; one per block.
struct SelectShared {
    uint64_t bins[2048];
    uint64_t partial[32];
    uint64_t above, inside;
    uint32_t chosen;
};

/// Sum of x over the threads before this one; `total` over all kThreads, a multiple of 32 up to 1024.
template <int kThreads>
__device__ uint64_t block_scan(uint64_t x, SelectShared& s, uint64_t* total) {
    constexpr int kWarps = kThreads / 32;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint64_t sum = warp_prefix_sum(x);
    __syncthreads();
    if (lane == 31) s.partial[warp] = sum;
    __syncthreads();
    uint64_t before = 0, all = 0;
    for (int w = 0; w < kWarps; ++w) {
        if (w == warp) before = all;
        all += s.partial[w];
    }
    *total = all;
    return before + sum - x;
}

/// bins[bin] += weight for the active lanes; called by whole warps. Why not one atomic per lane: neighbours
/// often share a bin, and 64-bit shared atomics on one address are slow.
__device__ __forceinline__ void add_to_bins(uint64_t* bins, bool active, uint32_t bin, uint64_t weight) {
    uint32_t left = __ballot_sync(kFull, active);
    while (left) {
        const int leader = __ffs(static_cast<int>(left)) - 1;
        const uint32_t chosen = __shfl_sync(kFull, bin, leader);
        const bool mine = active && bin == chosen;
        const uint64_t sum = warp_sum(mine ? weight : 0);
        if (static_cast<int>(threadIdx.x % 32) == leader)
            atomicAdd(reinterpret_cast<unsigned long long*>(bins + bin),
                      static_cast<unsigned long long>(sum));
        left &= ~__ballot_sync(kFull, mine);
    }
}

/// Where a prefix by key descending ends: at `key`, with mass `above` before it and `inside` on it.
struct Selected {
    uint32_t key;
    uint64_t above, inside;
    bool reached;
};

/// The shortest prefix by key descending whose mass reaches `target` >= 1, found 11 bits at a time.
/// each(visit) makes whole warps call visit(active, key); weigh(key) is an element's weight.
template <int kThreads, class Each, class Weigh>
__device__ Selected select_prefix(uint64_t target, Each each, Weigh weigh, SelectShared& s) {
    constexpr int kBinsPerThread = 2048 / kThreads;
    static_assert(kBinsPerThread * kThreads == 2048);
    Selected found{0, 0, 0, false};
    uint32_t fixed = 0;
    for (int shift = 21; shift >= 0; shift = shift == 21 ? 10 : shift - 10) {
        const uint32_t digits = shift == 0 ? 1023u : 2047u;
        for (int i = threadIdx.x; i < 2048; i += kThreads) s.bins[i] = 0;
        __syncthreads();
        each([&](bool active, uint32_t key) {
            active = active && (key & fixed) == found.key;
            add_to_bins(s.bins, active, (key >> shift) & digits, active ? weigh(key) : 0);
        });
        __syncthreads();
        // Threads own bins from the top down.
        const int first = 2047 - static_cast<int>(threadIdx.x) * kBinsPerThread;
        uint64_t own = 0, total;
        for (int i = 0; i < kBinsPerThread; ++i) own += s.bins[first - i];
        uint64_t before = found.above + block_scan<kThreads>(own, s, &total);
        if (found.above + total < target) return found;
        if (before < target && before + own >= target) {
            int bin = first;
            while (before + s.bins[bin] < target) before += s.bins[bin--];
            s.chosen = static_cast<uint32_t>(bin);
            s.above = before;
            s.inside = s.bins[bin];
        }
        __syncthreads();
        found.key |= s.chosen << shift;
        found.above = s.above;
        found.inside = s.inside;
        fixed |= digits << shift;
    }
    found.reached = true;
    return found;
}

}  // namespace mmx::cuda
