#pragma once

#include <cstdint>

namespace mmx::cuda::sm90 {

/// Integers in the order of floats; both zeros are equal. Every score but NaN maps above 0.
__device__ __forceinline__ uint32_t ordered(float x) {
    const uint32_t bits = __float_as_uint(x + 0.0f);
    return bits ^ (bits >> 31 ? 0xFFFFFFFFu : 0x80000000u);
}

}  // namespace mmx::cuda::sm90
