#pragma once

#include <cuda_runtime.h>

#include "cpp/core/check.h"

namespace mmx::cuda {

/// The runtime keeps what a call of this thread failed with; a later launch that works must not find it.
inline void forget_error() { static_cast<void>(cudaGetLastError()); }

}  // namespace mmx::cuda

/// Throws mmx::Error with CUDA's own words when `call` fails.
#define MMX_CUDA_CHECK(call)                                          \
    do {                                                              \
        const cudaError_t mmx_status = (call);                        \
        if (mmx_status != cudaSuccess) {                              \
            ::mmx::cuda::forget_error();                              \
            ::mmx::fail(#call, ": ", cudaGetErrorString(mmx_status)); \
        }                                                             \
    } while (0)
