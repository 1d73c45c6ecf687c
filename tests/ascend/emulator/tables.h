#pragma once

#include <array>
#include <type_traits>

#include "tests/ascend/emulator/types.h"

/// What the chip (architecture 2201) has, as compile-time tables: element types per instruction, casts and
/// their rounding modes, data paths, events per kind of core. The public headers accept more than the chip.
namespace emu::tables {

template <class T, class... Any>
inline constexpr bool is_one_of = (std::is_same_v<T, Any> || ...);

template <class T>
concept Arithmetic = is_one_of<T, half, float, int16_t, int32_t>;
template <class T>
concept Floating = is_one_of<T, half, float>;
template <class T>
concept Bitwise = is_one_of<T, int16_t, uint16_t>;
template <class T>
concept Shiftable = is_one_of<T, int16_t, uint16_t, int32_t, uint32_t>;
template <class T>
concept Fillable = is_one_of<T, half, bfloat16_t, float, int16_t, uint16_t, int32_t, uint32_t>;
template <class T>
concept Countable = is_one_of<T, half, float, int16_t, int32_t>;
template <class T>
concept Rectifiable = is_one_of<T, half, float, int32_t>;
template <class T>
concept Gatherable = is_one_of<T, half, bfloat16_t, float, int16_t, uint16_t, int32_t, uint32_t>;

/// Bit set of the legal rounding modes of a cast; 0: the cast does not exist.
constexpr unsigned bit(RoundMode mode) { return 1u << static_cast<unsigned>(mode); }
inline constexpr unsigned kNone = bit(RoundMode::CAST_NONE);
inline constexpr unsigned kFive = bit(RoundMode::CAST_RINT) | bit(RoundMode::CAST_FLOOR) |
                                  bit(RoundMode::CAST_CEIL) | bit(RoundMode::CAST_ROUND) |
                                  bit(RoundMode::CAST_TRUNC);
inline constexpr unsigned kOdd = bit(RoundMode::CAST_ODD);

template <class D, class S>
constexpr unsigned cast_modes() {
    if constexpr (is_one_of<S, int8_t, uint8_t> && std::is_same_v<D, half>) return kNone;
    if constexpr (std::is_same_v<S, half>) {
        if constexpr (is_one_of<D, int8_t, uint8_t>) return kNone | kFive;
        if constexpr (is_one_of<D, int16_t, int32_t>) return kFive;
        if constexpr (std::is_same_v<D, float>) return kNone;
    }
    if constexpr (std::is_same_v<S, bfloat16_t>) {
        if constexpr (std::is_same_v<D, float>) return kNone;
        if constexpr (std::is_same_v<D, int32_t>) return kFive;
    }
    if constexpr (std::is_same_v<S, int16_t>) {
        if constexpr (std::is_same_v<D, half>) return kNone | kFive;
        if constexpr (std::is_same_v<D, float>) return kNone;
    }
    if constexpr (std::is_same_v<S, int32_t>) {
        if constexpr (std::is_same_v<D, float>) return kNone | kFive;
        if constexpr (is_one_of<D, int16_t, int64_t>) return kNone;
    }
    if constexpr (std::is_same_v<S, float>) {
        if constexpr (std::is_same_v<D, bfloat16_t>) return kFive;
        if constexpr (std::is_same_v<D, half>) return kNone | kFive | kOdd;
        if constexpr (is_one_of<D, int16_t, int32_t, int64_t, float>) return kFive;
    }
    return 0;
}
template <class D, class S>
concept Castable = cast_modes<D, S>() != 0;

/// Accumulator of Mmad for each pair of inputs; void where there is none.
template <class A, class B>
struct Accumulator {
    using type = void;
};
template <class A>
    requires is_one_of<A, half, bfloat16_t, float>
struct Accumulator<A, A> {
    using type = float;
};
template <>
struct Accumulator<int8_t, int8_t> {
    using type = int32_t;
};
template <class C, class A, class B>
concept Multipliable = !std::is_void_v<C> && std::is_same_v<typename Accumulator<A, B>::type, C>;

/// What Fixpipe can turn an accumulator into. int32 leaves as int32 or half, never as bf16.
template <class Out, class Acc>
concept Fixable = (std::is_same_v<Acc, float> && is_one_of<Out, float, half, bfloat16_t>) ||
                  (std::is_same_v<Acc, int32_t> && is_one_of<Out, int32_t, half, int8_t>);

struct EventPipes {
    pipe_t from, to;
    bool on_aic, on_aiv;
};

constexpr EventPipes event_pipes(AscendC::HardEvent event) {
    using enum AscendC::HardEvent;
    switch (event) {
        case MTE2_V: return {PIPE_MTE2, PIPE_V, false, true};
        case V_MTE2: return {PIPE_V, PIPE_MTE2, false, true};
        case V_MTE3: return {PIPE_V, PIPE_MTE3, false, true};
        case MTE3_V: return {PIPE_MTE3, PIPE_V, false, true};
        case V_V: return {PIPE_V, PIPE_V, false, true};
        case S_V: return {PIPE_S, PIPE_V, false, true};
        case V_S: return {PIPE_V, PIPE_S, false, true};
        case MTE2_MTE3: return {PIPE_MTE2, PIPE_MTE3, true, true};
        case MTE3_MTE2: return {PIPE_MTE3, PIPE_MTE2, true, true};
        case S_MTE2: return {PIPE_S, PIPE_MTE2, true, true};
        case MTE2_S: return {PIPE_MTE2, PIPE_S, true, true};
        case S_MTE3: return {PIPE_S, PIPE_MTE3, true, true};
        case MTE3_S: return {PIPE_MTE3, PIPE_S, true, true};
        case MTE2_MTE1: return {PIPE_MTE2, PIPE_MTE1, true, false};
        case MTE1_MTE2: return {PIPE_MTE1, PIPE_MTE2, true, false};
        case MTE1_M: return {PIPE_MTE1, PIPE_M, true, false};
        case M_MTE1: return {PIPE_M, PIPE_MTE1, true, false};
        case M_FIX: return {PIPE_M, PIPE_FIX, true, false};
        case FIX_M: return {PIPE_FIX, PIPE_M, true, false};
        case MTE2_FIX: return {PIPE_MTE2, PIPE_FIX, true, false};
        case FIX_MTE2: return {PIPE_FIX, PIPE_MTE2, true, false};
        case MTE1_FIX: return {PIPE_MTE1, PIPE_FIX, true, false};
        case FIX_MTE1: return {PIPE_FIX, PIPE_MTE1, true, false};
        case MTE2_M: return {PIPE_MTE2, PIPE_M, true, false};
        case M_MTE2: return {PIPE_M, PIPE_MTE2, true, false};
        case MTE3_MTE1: return {PIPE_MTE3, PIPE_MTE1, true, false};
        case MTE1_MTE3: return {PIPE_MTE1, PIPE_MTE3, true, false};
        case FIX_MTE3: return {PIPE_FIX, PIPE_MTE3, true, false};
        case FIX_FIX: return {PIPE_FIX, PIPE_FIX, true, false};
        case M_S: return {PIPE_M, PIPE_S, true, false};
        case FIX_S: return {PIPE_FIX, PIPE_S, true, false};
        // Pairs that no core of this chip has.
        case S_M: return {PIPE_S, PIPE_M, false, false};
        case V_M: return {PIPE_V, PIPE_M, false, false};
    }
    return {PIPE_S, PIPE_S, false, false};
}

/// Elements per cycle of a vector instruction on lanes of `bytes` bytes.
struct Rate {
    double on16, on32;
    constexpr double operator()(size_t bytes) const { return bytes >= 4 ? on32 : on16; }
};
inline constexpr Rate kSimple{128, 64}, kSlow{32, 32}, kMulAdd{64, 32}, kReduce{128.0 / 7, 64.0 / 7},
    kGatherMask{64, 32}, kGather{5, 5}, kSort{2, 2};

}  // namespace emu::tables
