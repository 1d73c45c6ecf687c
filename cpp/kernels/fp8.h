#pragma once

#include "cpp/kernels/vec.h"

namespace mmx::cpu::MMX_CPU_ISA {

/// Side of the square block that shares one scale.
inline constexpr int64_t kFp8Block = 128;

/// out[i] = x[i] * scale[i / 128] for i < n, the product rounded once in fp32.
template <class T>
static inline void dequant_row(T* out, const e4m3* x, const float* scale, int64_t n) {
    for (int64_t block = 0; block < n; block += kFp8Block) {
        const vf factor = splat(scale[block / kFp8Block] * 0x1p8f);
        const int64_t end = std::min(n, block + kFp8Block);
        int64_t i = block;
        for (; i + kWidth <= end; i += kWidth) store(out + i, load_times_2_to_minus_8(x + i) * factor);
        if (i == end) continue;
        e4m3 padded[kWidth] = {};
        std::memcpy(padded, x + i, static_cast<size_t>(end - i));
        store_some(out + i, load_times_2_to_minus_8(padded) * factor, end - i);
    }
}

}  // namespace mmx::cpu::MMX_CPU_ISA
