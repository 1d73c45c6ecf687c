#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

/// Number types and enumerations of AscendC as far as the kernels use them.
#define __aicore__
#define __global__
#define __gm__
#define __ubuf__
#define GM_ADDR uint8_t*
#define MMX_DEVICE_LAMBDA

enum class RoundMode { CAST_NONE, CAST_RINT, CAST_FLOOR, CAST_CEIL, CAST_ROUND, CAST_TRUNC, CAST_ODD };
enum class CMPMODE { LT, GT, EQ, LE, GE, NE };
enum class SELMODE { VSEL_CMPMASK_SPR, VSEL_TENSOR_SCALAR_MODE, VSEL_TENSOR_TENSOR_MODE };

enum pipe_t { PIPE_S, PIPE_V, PIPE_M, PIPE_MTE1, PIPE_MTE2, PIPE_MTE3, PIPE_FIX, PIPE_ALL };

namespace emu {

/// `q` to an integer by `mode`; ODD truncates and then sets the last bit if anything was lost.
inline double round_integer(double q, RoundMode mode) {
    switch (mode) {
        case RoundMode::CAST_FLOOR: return std::floor(q);
        case RoundMode::CAST_CEIL: return std::ceil(q);
        case RoundMode::CAST_ROUND: return std::round(q);
        case RoundMode::CAST_TRUNC: return std::trunc(q);
        case RoundMode::CAST_ODD: {
            const double t = std::trunc(q);
            return t == q || std::fmod(t, 2.0) != 0 ? t : t + std::copysign(1.0, q);
        }
        default: return std::nearbyint(q);
    }
}

/// `x` rounded to a binary format of `mantissa` stored bits whose smallest normal exponent is `min_exponent`.
inline double round_binary(double x, int mantissa, int min_exponent, double largest, RoundMode mode) {
    if (!std::isfinite(x) || x == 0) return x;
    const double unit = std::ldexp(1.0, std::max(std::ilogb(x), min_exponent) - mantissa);
    const double y = round_integer(x / unit, mode) * unit;
    if (std::fabs(y) <= largest) return y == 0 ? std::copysign(0.0, x) : y;
    return std::copysign(std::numeric_limits<double>::infinity(), x);
}

}  // namespace emu

struct bfloat16_t {
    uint16_t bits = 0;
    bfloat16_t() = default;
    explicit bfloat16_t(float x, RoundMode mode = RoundMode::CAST_RINT) {
        if (std::isfinite(x) && mode != RoundMode::CAST_RINT)
            x = static_cast<float>(emu::round_binary(x, 7, -126, 0x1.FEp127, mode));
        uint32_t u;
        std::memcpy(&u, &x, 4);
        if (std::isnan(x)) {
            bits = static_cast<uint16_t>((u >> 16) | 0x40);
            return;
        }
        bits = static_cast<uint16_t>((u + 0x7FFF + ((u >> 16) & 1)) >> 16);
    }
    explicit operator float() const {
        const uint32_t u = static_cast<uint32_t>(bits) << 16;
        float x;
        std::memcpy(&x, &u, 4);
        return x;
    }
};

struct half {
    _Float16 value = 0;
    half() = default;
    explicit half(float x, RoundMode mode = RoundMode::CAST_RINT)
        : value(
              static_cast<_Float16>(mode == RoundMode::CAST_RINT || mode == RoundMode::CAST_NONE
                                        ? x
                                        : static_cast<float>(emu::round_binary(x, 10, -14, 65504.0, mode)))) {
    }
    explicit operator float() const { return static_cast<float>(value); }
};

namespace AscendC {

enum class TPosition { GM, A1, A2, B1, B2, C1, C2, CO1, VECIN, VECOUT, VECCALC, C2PIPE2GM };
using QuePosition = TPosition;

/// Every pair that some core has; which core has which is in tables.h.
enum class HardEvent {
    MTE2_V,
    V_MTE2,
    V_MTE3,
    MTE3_V,
    V_V,
    MTE2_MTE3,
    MTE3_MTE2,
    S_V,
    V_S,
    S_MTE2,
    MTE2_S,
    S_MTE3,
    MTE3_S,
    MTE2_MTE1,
    MTE1_MTE2,
    MTE1_M,
    M_MTE1,
    M_FIX,
    FIX_M,
    MTE2_FIX,
    FIX_MTE2,
    MTE1_FIX,
    FIX_MTE1,
    MTE2_M,
    M_MTE2,
    MTE3_MTE1,
    MTE1_MTE3,
    FIX_MTE3,
    FIX_FIX,
    M_S,
    FIX_S,
    S_M,
    V_M
};
using TEventID = int8_t;
constexpr TEventID EVENT_ID0 = 0, EVENT_ID1 = 1, EVENT_ID2 = 2, EVENT_ID3 = 3, EVENT_ID4 = 4, EVENT_ID5 = 5;

enum class CacheMode { CACHE_MODE_NORMAL, CACHE_MODE_DISABLE };
enum class CacheLine { SINGLE_CACHE_LINE, ENTIRE_DATA_CACHE };
enum class DcciDst { CACHELINE_ALL, CACHELINE_OUT };
enum class QuantMode_t { NoQuant, F322F16, F322BF16, DEQF16, REQ8, VDEQF16, VREQ8 };
enum class ReduceOrder { ORDER_VALUE_INDEX, ORDER_INDEX_VALUE, ORDER_ONLY_VALUE };

constexpr uint32_t ONE_BLK_SIZE = 32;

}  // namespace AscendC
