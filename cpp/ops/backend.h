#pragma once

#include "cpp/core/ops.h"
#include "cpp/ops/tensor.h"

/// A backend is a struct with one static launcher per op of MMX_OPS, one size function per op of
/// MMX_WORKSPACE_OPS, and `enqueue`, which runs a launcher on the device's current stream.
namespace mmx::ops {

/// Fills workspace and workspace_bytes of `p` from the caller's scratch tensor and checks its size.
template <class P>
void set_workspace(Matcher& m, P& p, const Tensor& workspace, int64_t needed) {
    m.shape("workspace", workspace, {"workspace_bytes"});
    m.same_dtype("workspace", workspace, DType::kI8);
    const int64_t given = m["workspace_bytes"];
    m.require(given >= needed, "workspace must have at least ", needed, " bytes, got ", given);
    p.workspace = given > 0 ? ptr(workspace) : nullptr;
    p.workspace_bytes = given;
}

inline constexpr std::initializer_list<DType> kFloat = {DType::kF32, DType::kBF16};

}  // namespace mmx::ops
