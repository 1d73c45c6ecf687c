#pragma once

#include <cstdint>

#include "cpp/core/params/comm.h"

/// Rows sent to and received from the other ranks of this host (`Peers`). Words go in pairs: an access of 16
/// bytes whose two halves are each seen whole.
namespace mmx::cuda {

__device__ __forceinline__ void send_pair(uint64_t* to, uint32_t epoch, uint32_t x, uint32_t y) {
    const uint64_t high = static_cast<uint64_t>(epoch) << 32;
    asm volatile("st.relaxed.sys.global.v2.b64 [%0], {%1, %2};" ::"l"(to), "l"(high | x), "l"(high | y)
                 : "memory");
}

/// Pairs of exchange `epoch` from kCount places behind `from`, whose loads are in flight together. A peer
/// that stays silent for `timeout_ns` ends the kernel with an error: the process can not go on, and the
/// watchdog of the ranks has named the peer before.
template <int kCount>
__device__ __forceinline__ void receive_pairs(const uint64_t* from, const uint32_t (&places)[kCount],
                                              uint32_t epoch, int64_t timeout_ns, uint32_t (&x)[kCount],
                                              uint32_t (&y)[kCount]) {
    constexpr unsigned kPollsPerLook = 4096;
    uint64_t begin = 0;
    for (unsigned polls = 0;; ++polls) {
        uint64_t a[kCount], b[kCount];
#pragma unroll
        for (int i = 0; i < kCount; ++i)
            asm volatile("ld.relaxed.sys.global.v2.b64 {%0, %1}, [%2];"
                         : "=l"(a[i]), "=l"(b[i])
                         : "l"(from + places[i])
                         : "memory");
        bool all_here = true;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            all_here &=
                static_cast<uint32_t>(a[i] >> 32) == epoch && static_cast<uint32_t>(b[i] >> 32) == epoch;
            x[i] = static_cast<uint32_t>(a[i]);
            y[i] = static_cast<uint32_t>(b[i]);
        }
        if (all_here) return;
        if (polls % kPollsPerLook != kPollsPerLook - 1) continue;
        uint64_t now;
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
        if (begin == 0) begin = now;
        if (now - begin > static_cast<uint64_t>(timeout_ns)) __trap();
    }
}

/// The same of one pair, at `from`.
__device__ __forceinline__ void receive_pair(const uint64_t* from, uint32_t epoch, int64_t timeout_ns,
                                             uint32_t& x, uint32_t& y) {
    const uint32_t place[] = {0};
    uint32_t low[1], high[1];
    receive_pairs(from, place, epoch, timeout_ns, low, high);
    x = low[0];
    y = high[0];
}

}  // namespace mmx::cuda
