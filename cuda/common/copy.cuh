#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>

namespace mmx::cuda {

inline uint64_t address(const void* data) { return reinterpret_cast<uintptr_t>(data); }

/// Calls f(U{}) with the widest type, 2 to 16 bytes, whose size divides all of `values`: addresses, strides
/// and lengths in bytes of a copy.
template <class F>
void dispatch_copy_width(std::initializer_list<uint64_t> values, F&& f) {
    uint64_t bits = 0;
    for (const uint64_t value : values) bits |= value;
    if (bits % 16 == 0) return f(uint4{});
    if (bits % 8 == 0) return f(uint2{});
    if (bits % 4 == 0) return f(uint32_t{});
    return f(uint16_t{});
}

}  // namespace mmx::cuda
