#pragma once

#include "cuda/common/launch.h"

namespace mmx::cuda {

/// A launch whose kernel may start while its predecessor on the stream drains (ptx/grid.cuh has the rules),
/// optionally in clusters of `cluster` blocks along x.
struct LaunchChain {
    const char* op;
    dim3 grid, block;
    size_t smem_bytes;
    Stream stream;
    unsigned cluster = 1;

    template <class... P, class... A>
    void operator()(void (*kernel)(P...), A&&... args) const {
        if (smem_bytes > 48 * 1024)
            MMX_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                static_cast<int>(smem_bytes)));
        if (cluster > 8)
            MMX_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
        cudaLaunchAttribute attributes[2];
        attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[0].val.programmaticStreamSerializationAllowed = 1;
        attributes[1].id = cudaLaunchAttributeClusterDimension;
        attributes[1].val.clusterDim = {cluster, 1, 1};
        cudaLaunchConfig_t config{};
        config.gridDim = grid;
        config.blockDim = block;
        config.dynamicSmemBytes = smem_bytes;
        config.stream = to_cuda(stream);
        config.attrs = attributes;
        config.numAttrs = cluster > 1 ? 2 : 1;
        const cudaError_t status = cudaLaunchKernelEx(&config, kernel, static_cast<A&&>(args)...);
        if (status == cudaSuccess) return;
        forget_error();
        fail(op, ": launch failed: ", cudaGetErrorString(status));
    }
};

/// Multiprocessors of the current device.
inline int64_t num_multiprocessors() {
    int device = 0, count = 0;
    MMX_CUDA_CHECK(cudaGetDevice(&device));
    MMX_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
    return count;
}

/// Blocks of a kernel that fit on the device together, in whole clusters along x: what a kernel whose blocks
/// loop over the work should launch. Fewer than the multiprocessors may hold, because those that share a
/// cluster's hardware need not be an even number.
template <class... P>
int64_t num_resident_blocks(void (*kernel)(P...), dim3 block, size_t smem_bytes, unsigned cluster) {
    MMX_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(smem_bytes)));
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {cluster, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(cluster);
    config.blockDim = block;
    config.dynamicSmemBytes = smem_bytes;
    config.attrs = &attribute;
    config.numAttrs = 1;
    int clusters = 0;
    MMX_CUDA_CHECK(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config));
    return static_cast<int64_t>(clusters) * cluster;
}

}  // namespace mmx::cuda
