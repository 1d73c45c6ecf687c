#pragma once

#include <algorithm>

#include "cpp/core/check.h"
#include "cpp/core/dtype.h"
#include "cpp/core/math.h"

/// Host side of every launch: how many blocks, and what a kernel can do. No CANN header is needed.
namespace mmx::ascend {

/// Cores of the device as the runtime reports them; never a constant, chips of one family differ.
struct Cores {
    int aic, aiv;
};

inline void require_bf16(const char* op, const char* tensor, DType dtype) {
    MMX_CHECK(dtype == DType::kBF16, op, ": on Ascend ", tensor, " must be bfloat16, got ",
              dtype_name(dtype));
}

/// Blocks of a vector kernel over `tasks` independent tasks.
inline int vector_blocks(int64_t tasks, const Cores& cores) {
    return static_cast<int>(std::clamp<int64_t>(tasks, 1, cores.aiv));
}
inline int cube_blocks(int64_t tasks, const Cores& cores) {
    return static_cast<int>(std::clamp<int64_t>(tasks, 1, cores.aic));
}

}  // namespace mmx::ascend
