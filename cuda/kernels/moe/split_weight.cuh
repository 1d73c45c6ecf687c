#pragma once

#include <cstdint>

/// An fp32 weight is the sum of three bf16 numbers, and a product of two bf16 numbers is exact in fp32: three
/// passes of the tensor cores give the fp32 gate.
namespace mmx::cuda {

inline constexpr int kRouterParts = 3;

/// The upper 16 bits of four numbers as bf16, and what they leave over in `rest`. Three times in turn they
/// give the parts of a weight, which has no more than 24 significant bits.
__device__ __forceinline__ uint2 take_upper_bits(float4& rest) {
    const auto upper = [](float x) { return __float_as_uint(x) & 0xFFFF0000u; };
    const uint32_t a = upper(rest.x), b = upper(rest.y), c = upper(rest.z), d = upper(rest.w);
    rest.x -= __uint_as_float(a);
    rest.y -= __uint_as_float(b);
    rest.z -= __uint_as_float(c);
    rest.w -= __uint_as_float(d);
    return make_uint2(a >> 16 | b, c >> 16 | d);
}

}  // namespace mmx::cuda
