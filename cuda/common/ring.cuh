#pragma once

/// Buffers in shared memory that warps fill and empty in turn, each with a barrier for either.
namespace mmx::cuda {

/// Place in a ring of kSize; `parity` starts as the one that the first wait expects.
template <int kSize>
struct Ring {
    int at = 0, parity;

    __device__ __forceinline__ explicit Ring(int first_parity) : parity(first_parity) {}
    __device__ __forceinline__ void advance() {
        if (++at == kSize) at = 0, parity ^= 1;
    }
};

}  // namespace mmx::cuda
