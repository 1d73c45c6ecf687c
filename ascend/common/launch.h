#pragma once

#include <tiling/platform/platform_ascendc.h>

#include "ascend/common/kernel.h"
#include "ascend/common/tiling.h"
#include "cpp/core/stream.h"

/// The device side of a launch, for .asc files only: an entry point and the launcher of an op.
namespace mmx::ascend {

inline Cores device_cores() {
    auto* platform = platform_ascendc::PlatformAscendCManager::GetInstance();
    return {static_cast<int>(platform->GetCoreNumAic()), static_cast<int>(platform->GetCoreNumAiv())};
}

}  // namespace mmx::ascend

/// Cores of a kernel: vector cores alone, or each cube core with its two vector cores.
#define MMX_VECTOR __vector__
#define MMX_MIX __mix__(1, 2)

/// Defines op_entry and mmx::ascend::op(Params, Stream) on `cores`, MMX_VECTOR or MMX_MIX.
#define MMX_ASCEND_OP(op, Params, Tiling, cores)          \
    __global__ cores void op##_entry(Tiling t) {          \
        AscendC::InitSocState();                          \
        mmx::ascend::op##_kernel(t);                      \
    }                                                     \
    namespace mmx::ascend {                               \
    void op(const Params& p, Stream stream) {             \
        const Tiling t = op##_tiling(p, device_cores());  \
        op##_entry<<<t.num_blocks, nullptr, stream>>>(t); \
    }                                                     \
    }

#define MMX_ASCEND_WORKSPACE(op, Params)                                                        \
    namespace mmx::ascend {                                                                     \
    int64_t op##_workspace(const Params& p) { return op##_workspace_bytes(p, device_cores()); } \
    }
