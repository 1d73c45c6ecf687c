#pragma once

#include <cuda_runtime.h>

#include "cpp/core/check.h"

/// Throws mmx::Error with CUDA's own words when `call` fails.
#define MMX_CUDA_CHECK(call)                                                                     \
    do {                                                                                         \
        const cudaError_t mmx_status = (call);                                                   \
        if (mmx_status != cudaSuccess) ::mmx::fail(#call, ": ", cudaGetErrorString(mmx_status)); \
    } while (0)
