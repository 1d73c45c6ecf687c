#pragma once

#include "cuda/common/ptx/global.cuh"
#include "cuda/kernels/attention/sm90_prefill_plan.h"

/// Partial results of a (query, block) on their way through the L2: 16 rows of 128 sums in the layout of
/// ptx::Wgmma, two rows a lane. Eight neighbouring values of a lane share an exponent and keep 10 bits each:
/// 12 words a lane and row instead of the 16 of bf16, with errors as of bf16 (0.0016 of the standard
/// deviation where values are normal).
namespace mmx::cuda::sm90 {

/// The 32 values that a lane has of a row: three in a word, the exponents in the last one.
struct PackedRow {
    static constexpr int kWords = 12, kBytes = kWords * 32 * 4;  // of a lane; of a warp
    static constexpr int kGroup = 8;
    static_assert(kPartialBytes == 2 * kBytes);
    /// What the sums of `for_each` must be multiplied by.
    static constexpr float kUnit = 1.0f / 256;

    // 2^23 + 512: a float plus this holds an integer i of -511 to 511 as 512 + i in its low bits, below the
    // exponent's 0x4B. The first value of a word leaves that in the field of the third, which has room for
    // it.
    static constexpr float kMagic = 8389120;
    static constexpr uint32_t kExponent = 0x4B000000;

    uint32_t words[kWords];

    PackedRow() = default;

    /// Of values up to `largest`: of what is too close to a power of two to stay below 512 the next one. Not
    /// under 9, for the inverse; 255 is not finite.
    __device__ __forceinline__ static uint32_t exponent_of(float largest) {
        return max(__float_as_uint(largest * (1 + 0x1p-9f)) >> 23, 9u);
    }
    __device__ __forceinline__ static float scale_of(uint32_t exponent) {
        return __uint_as_float((262 - exponent) << 23);  // 2^(8 - (exponent - 127))
    }
    /// The integer that is kept of a value.
    __device__ __forceinline__ static float rounded(float value, float scale) {
        return fmaf(value, scale, kMagic) - kMagic;
    }
    __device__ __forceinline__ static float max_or_nan(float x, float y) {
        float z;
        asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
        return z;
    }

    template <class F>
    __device__ __forceinline__ explicit PackedRow(F&& value) {
        float scale[32 / kGroup];
        words[kWords - 1] = 0;
#pragma unroll
        for (int group = 0; group < 32 / kGroup; ++group) {
            float largest = 0;
#pragma unroll
            for (int i = 0; i < kGroup; ++i) largest = max_or_nan(largest, fabsf(value(group * kGroup + i)));
            const uint32_t exponent = exponent_of(largest);
            scale[group] = scale_of(exponent);
            words[kWords - 1] |= exponent << 8 * group;
        }
        const auto code = [&](int i) {
            return i < 32 ? __float_as_uint(fmaf(value(i), scale[i / kGroup], kMagic)) : 0;
        };
#pragma unroll
        for (int w = 0; w < kWords - 1; ++w)
            words[w] = code(3 * w) + (code(3 * w + 1) << 10) + (code(3 * w + 2) << 20);
    }

    /// f(i, weight times the unit of value i, value i) for the lane's 32 values.
    template <class F>
    __device__ __forceinline__ void for_each(float weight, F&& f) const {
        float unit[32 / kGroup];
#pragma unroll
        for (int group = 0; group < 32 / kGroup; ++group)
            unit[group] = weight * __uint_as_float(words[kWords - 1] >> 8 * group << 24 >> 1);
        const auto give = [&](int i, uint32_t field, uint32_t bias) {
            if (i < 32)
                f(i, unit[i / kGroup],
                  __uint_as_float(field | kExponent) - (kMagic + static_cast<float>(bias)));
        };
#pragma unroll
        for (int w = 0; w < kWords - 1; ++w) {
            give(3 * w, words[w] & 0x3FF, 0);
            give(3 * w + 1, words[w] >> 10 & 0x3FF, 0);
            give(3 * w + 2, words[w] >> 20, kExponent >> 20);
        }
    }

    /// The L2 should give up first what it holds of the rows of a warp, kBytes each.
    template <int kRow>
    __device__ __forceinline__ void store(char* rows, int lane) const {
        char* mine = rows + 16 * lane;
        ptx::store_streamed<kRow * kBytes>(mine, words[0], words[1], words[2], words[3]);
        ptx::store_streamed<kRow * kBytes + 512>(mine, words[4], words[5], words[6], words[7]);
        ptx::store_streamed<kRow * kBytes + 1024>(mine, words[8], words[9], words[10], words[11]);
    }
    __device__ __forceinline__ void load(const char* row, int lane) {
#pragma unroll
        for (int i = 0; i < kWords / 4; ++i) {
            const uint4 x = __ldcs(reinterpret_cast<const uint4*>(row + 512 * i) + lane);
            words[4 * i] = x.x, words[4 * i + 1] = x.y, words[4 * i + 2] = x.z, words[4 * i + 3] = x.w;
        }
    }
};

}  // namespace mmx::cuda::sm90
