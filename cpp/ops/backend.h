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

/// Checks the scales of e4m3 pages: f32 [num_kv_heads] each, both or none, none for other pages.
inline void check_page_scales(Matcher& m, const OptionalTensor& k_scale, const OptionalTensor& v_scale,
                              DType cache_dtype) {
    m.require(k_scale.has_value() == v_scale.has_value(), "k_scale and v_scale must be given together");
    if (!k_scale) return;
    m.require(cache_dtype == DType::kE4M3, "k_scale and v_scale belong to float8_e4m3fn pages, got ",
              dtype_name(cache_dtype), " pages");
    m.shape("k_scale", *k_scale, {"num_kv_heads"}).shape("v_scale", *v_scale, {"num_kv_heads"});
    m.same_dtype("k_scale", *k_scale, DType::kF32);
    m.same_dtype("v_scale", *v_scale, DType::kF32);
}

}  // namespace mmx::ops
