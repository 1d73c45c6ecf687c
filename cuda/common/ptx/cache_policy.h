#pragma once

#include <cstdint>

namespace mmx::cuda::ptx {

/// What the L2 does with what is loaded or stored: data that is read once and is more than it holds should
/// leave first.
inline constexpr uint64_t kEvictNormal = 0x1000000000000000, kEvictFirst = 0x12F0000000000000;

}  // namespace mmx::cuda::ptx
