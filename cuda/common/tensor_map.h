#pragma once

#include <cuda.h>

#include <array>

#include "cuda/common/check.h"

namespace mmx::cuda {

/// What the copy engine needs to know of a tensor of bf16 or, with type UINT8, of bytes. Dimensions innermost
/// first; the innermost is contiguous, `strides` are those of the others in elements (multiples of 16 bytes);
/// a box is what one load fetches, its innermost extent 128 bytes, stored with the 128-byte swizzle.
/// `promotion`: what the L2 fetches at least. More than a box has of a row costs 3 to 4 % where memory is the
/// limit.
template <size_t kRank>
CUtensorMap make_tensor_map(const void* base, const std::array<int64_t, kRank>& dims,
                            const std::array<int64_t, kRank - 1>& strides,
                            const std::array<int64_t, kRank>& box,
                            CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                            CUtensorMapL2promotion promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_256B) {
    const cuuint64_t element_bytes = type == CU_TENSOR_MAP_DATA_TYPE_UINT8 ? 1 : 2;
    // Why through the runtime: linking libcuda would tie the library to machines that have a driver.
    static const auto encode = [] {
        void* entry = nullptr;
        cudaDriverEntryPointQueryResult found{};
        MMX_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                                        cudaEnableDefault, &found));
        MMX_CHECK(entry && found == cudaDriverEntryPointSuccess, "the driver lacks cuTensorMapEncodeTiled");
        return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
    }();
    std::array<cuuint64_t, kRank> sizes{};
    std::array<cuuint64_t, kRank - 1> bytes{};
    std::array<cuuint32_t, kRank> extent{}, step{};
    for (size_t i = 0; i < kRank; ++i) {
        sizes[i] = static_cast<cuuint64_t>(dims[i]);
        extent[i] = static_cast<cuuint32_t>(box[i]);
        step[i] = 1;
        if (i > 0) bytes[i - 1] = static_cast<cuuint64_t>(strides[i - 1]) * element_bytes;
    }
    CUtensorMap map{};
    const CUresult status = encode(&map, type, kRank, const_cast<void*>(base), sizes.data(), bytes.data(),
                                   extent.data(), step.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
                                   CU_TENSOR_MAP_SWIZZLE_128B, promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    MMX_CHECK(status == CUDA_SUCCESS, "cuTensorMapEncodeTiled failed with code ", static_cast<int>(status));
    return map;
}

}  // namespace mmx::cuda
