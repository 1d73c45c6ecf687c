#pragma once

#include <platform/platform_ascendc.h>

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

/// Defines op_entry and mmx::ascend::op(Params, Stream). `type` is the kernel's task type.
#define MMX_ASCEND_OP(op, Params, Tiling, type)                  \
    extern "C" __global__ __aicore__ void op##_entry(Tiling t) { \
        KERNEL_TASK_TYPE_DEFAULT(type);                          \
        mmx::ascend::op##_kernel(t);                             \
    }                                                            \
    namespace mmx::ascend {                                      \
    void op(const Params& p, Stream stream) {                    \
        const Tiling t = op##_tiling(p, device_cores());         \
        op##_entry<<<t.num_blocks, nullptr, stream>>>(t);        \
    }                                                            \
    }

#define MMX_ASCEND_WORKSPACE(op, Params)                                                        \
    namespace mmx::ascend {                                                                     \
    int64_t op##_workspace(const Params& p) { return op##_workspace_bytes(p, device_cores()); } \
    }
