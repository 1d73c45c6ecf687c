#pragma once

#include <cstdint>

#include "cpp/core/stream.h"
#include "cuda/common/check.h"

namespace mmx::cuda {

inline cudaStream_t to_cuda(Stream stream) { return static_cast<cudaStream_t>(stream); }

inline bool is_aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

/// Grid, block, shared memory and stream of one launch; reports a refused launch under the op's name.
struct Launch {
    const char* op;
    dim3 grid, block;
    size_t smem_bytes;
    Stream stream;

    template <class... P, class... A>
    void operator()(void (*kernel)(P...), A&&... args) const {
        if (smem_bytes > 48 * 1024)
            MMX_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                static_cast<int>(smem_bytes)));
        kernel<<<grid, block, smem_bytes, to_cuda(stream)>>>(static_cast<A&&>(args)...);
        const cudaError_t status = cudaGetLastError();
        if (status != cudaSuccess) fail(op, ": launch failed: ", cudaGetErrorString(status));
    }
};

}  // namespace mmx::cuda
