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

/// Two words of exchange `epoch`. A peer that stays silent for `timeout_ns` ends the kernel with an error:
/// the process can not go on, and the watchdog of the ranks has named the peer before.
__device__ __forceinline__ void receive_pair(const uint64_t* from, uint32_t epoch, int64_t timeout_ns,
                                             uint32_t& x, uint32_t& y) {
    constexpr unsigned kPollsPerLook = 4096;
    uint64_t a, b, begin = 0;
    for (unsigned polls = 0;; ++polls) {
        asm volatile("ld.relaxed.sys.global.v2.b64 {%0, %1}, [%2];"
                     : "=l"(a), "=l"(b)
                     : "l"(from)
                     : "memory");
        if (static_cast<uint32_t>(a >> 32) == epoch && static_cast<uint32_t>(b >> 32) == epoch) break;
        if (polls % kPollsPerLook != kPollsPerLook - 1) continue;
        uint64_t now;
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
        if (begin == 0) begin = now;
        if (now - begin > static_cast<uint64_t>(timeout_ns)) __trap();
    }
    x = static_cast<uint32_t>(a);
    y = static_cast<uint32_t>(b);
}

}  // namespace mmx::cuda
