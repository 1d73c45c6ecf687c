#pragma once

#include <array>
#include <bit>
#include <tuple>

#include "tests/ascend/emulator/dma.h"

namespace AscendC {

struct BinaryRepeatParams {
    uint8_t dstBlkStride = 1, src0BlkStride = 1, src1BlkStride = 1, dstRepStride = 8, src0RepStride = 8,
            src1RepStride = 8;
};
struct UnaryRepeatParams {
    uint16_t dstBlkStride = 1, srcBlkStride = 1;
    uint8_t dstRepStride = 8, srcRepStride = 8;
};
struct BrcbRepeatParams {
    uint16_t dstBlkStride = 1, dstRepStride = 8;
};

}  // namespace AscendC

namespace emu {

/// An operand of a vector instruction: strides in units of 32 B between blocks and between repeats.
template <class T>
struct Operand {
    using Type = T;
    AscendC::LocalTensor<T> tensor;
    size_t block = 1, repeat = 8;

    size_t byte(size_t r, size_t lane) const {
        const size_t b = lane * sizeof(T);
        return r * repeat * 32 + b / 32 * block * 32 + b % 32;
    }
    /// Checks and records the bytes of the active lanes; returns their bounds within the memory.
    std::pair<size_t, size_t> touch(Instruction& op, const char* name, size_t r,
                                    const std::vector<uint8_t>& active, bool write, const At& at) const {
        constexpr size_t lanes_per_block = 32 / sizeof(T);
        size_t low = ~0ull, high = 0;
        for (size_t first = 0; first < active.size(); first += lanes_per_block) {
            size_t lo = first, hi = std::min(active.size(), first + lanes_per_block);
            while (lo < hi && !active[lo]) ++lo;
            while (hi > lo && !active[hi - 1]) --hi;
            if (lo == hi) continue;
            const size_t begin = byte(r, lo), size = (hi - lo) * sizeof(T);
            tensor.check(begin, size, name, at);
            if (write)
                op.write(tensor.memory(), tensor.offset() + begin, size);
            else
                op.read(tensor.memory(), tensor.offset() + begin, size);
            low = std::min(low, tensor.offset() + begin);
            high = std::max(high, tensor.offset() + begin + size);
        }
        return {low, high};
    }
};

template <class T>
Operand<T> operand(const AscendC::LocalTensor<T>& t, size_t block = 1, size_t repeat = 8) {
    return {t, block, repeat};
}

/// Counts a repeat whose operands meet in a bank (a read and the write) or in a group of banks (two reads).
template <class D, class... S>
void count_conflicts(size_t repeats, const AscendC::LocalTensor<D>& d, const AscendC::LocalTensor<S>&... s) {
    const auto group = [](size_t address) { return address / 32 % 16; };
    const auto bank = [&](size_t address) { return 16 * (address / 65536) + group(address); };
    const std::array<size_t, sizeof...(S) + 1> at{s.offset()..., d.offset()};
    bool meets = false;
    for (size_t i = 0; i + 1 < at.size(); ++i) {
        meets = meets || (bank(at[i]) == bank(at.back()) && at[i] != at.back());
        for (size_t j = 0; j < i; ++j) meets = meets || (group(at[i]) == group(at[j]) && at[i] != at[j]);
    }
    if (meets) machine->bank_conflicts += repeats;
}

/// Active lanes of a repeat, from a count or from two words.
inline std::vector<uint8_t> lanes_of(uint64_t count, size_t lanes, const At& at) {
    require(count >= 1 && count <= lanes, 7, at, "mask ", count, " must be 1 to ", lanes);
    std::vector<uint8_t> active(lanes, 0);
    std::fill_n(active.begin(), count, 1);
    return active;
}
inline std::vector<uint8_t> lanes_of(const uint64_t* words, size_t lanes, const At& at) {
    require(lanes > 64 || words[1] == 0, 7, at, "the mask has bits beyond the ", lanes, " lanes");
    std::vector<uint8_t> active(lanes, 0);
    for (size_t i = 0; i < lanes; ++i) active[i] = words[i / 64] >> (i % 64) & 1;
    return active;
}

/// Runs f(dst, src...) on every active lane of every repeat, with the checks of a vector instruction.
template <class D, class... S, class F>
void vector_op(const char* name, tables::Rate rate, const std::vector<uint8_t>& active, size_t repeat,
               const At& at, F&& f, Operand<D> d, Operand<S>... s) {
    if (repeat == 0) return;
    constexpr size_t width = std::max({sizeof(D), sizeof(S)...});
    require(repeat <= 255, 5, at, name, ": repeat ", repeat, " must be at most 255");
    require(d.block != 0, 5, at, name, ": dstBlkStride 0");
    (s.tensor.aligned(32, name, at), ...);
    d.tensor.aligned(32, name, at);
    Instruction op(PIPE_V, name, at);
    if (!machine->dry) {
        for (size_t r = 0; r < repeat; ++r) {
            [[maybe_unused]] const std::array<std::pair<size_t, size_t>, sizeof...(S) + 1> bounds{
                s.touch(op, name, r, active, false, at)..., d.touch(op, name, r, active, true, at)};
            [[maybe_unused]] size_t i = 0;
            (overlap(name, at, bounds.back(), bounds[i++], d, s), ...);
        }
        for (size_t r = 0; r < repeat; ++r)
            for (size_t i = 0; i < active.size(); ++i)
                if (active[i]) f(*d.tensor.at_byte(d.byte(r, i)), *s.tensor.at_byte(s.byte(r, i))...);
    }
    count_conflicts(repeat, d.tensor, s.tensor...);
    op.done(repeat * (256.0 / width) / rate(width), Chip::kStartVector, repeat);
}

/// Within a repeat source and destination coincide or lie apart.
template <class D, class S>
void overlap(const char* name, const At& at, std::pair<size_t, size_t> to, std::pair<size_t, size_t> from,
             const Operand<D>& d, const Operand<S>& s) {
    if (&d.tensor.memory() != &s.tensor.memory() || to.second <= from.first || from.second <= to.first)
        return;
    const bool same = to == from && d.block == s.block && sizeof(D) == sizeof(S);
    const bool apart = d.block > 1 || s.block > 1;
    require(same || apart, 8, at, name, ": source and destination overlap in part");
}

template <class T>
std::pair<size_t, size_t> extent(const AscendC::LocalTensor<T>& t, size_t count) {
    return {t.offset(), t.offset() + count * sizeof(T)};
}

/// The counted form: `count` elements from the start of every operand.
template <class D, class... S, class F>
void counted_op(const char* name, tables::Rate rate, size_t count, const At& at, F&& f,
                const AscendC::LocalTensor<D>& d, const AscendC::LocalTensor<S>&... s) {
    if (count == 0) return;
    constexpr size_t width = std::max({sizeof(D), sizeof(S)...}), lanes = 256 / width;
    d.aligned(32, name, at);
    (s.aligned(32, name, at), ...);
    Instruction op(PIPE_V, name, at);
    d.check(0, count * sizeof(D), name, at);
    (s.check(0, count * sizeof(S), name, at), ...);
    if (!machine->dry) {
        (op.read(s.memory(), s.offset(), count * sizeof(S)), ...);
        op.write(d.memory(), d.offset(), count * sizeof(D));
        (overlap(name, at, extent(d, count), extent(s, count), operand(d), operand(s)), ...);
        for (size_t i = 0; i < count; ++i) f(d.at_index(i), s.at_index(i)...);
    }
    const size_t repeats = (count + lanes - 1) / lanes;
    count_conflicts(repeats, d, s...);
    op.done(repeats * lanes / rate(width), Chip::kStartVector, repeats);
}

template <class T>
float number(T x) {
    return static_cast<float>(x);
}
/// Maximum and minimum as the chip has them: NaN wins, and max(0, -0) is 0.
template <class T>
T larger(T a, T b) {
    if constexpr (std::is_integral_v<T>) return std::max(a, b);
    const float x = number(a), y = number(b);
    if (std::isnan(x) || std::isnan(y)) return std::isnan(x) ? a : b;
    if (x == y) return std::signbit(x) ? b : a;
    return x > y ? a : b;
}
template <class T>
T smaller(T a, T b) {
    if constexpr (std::is_integral_v<T>) return std::min(a, b);
    const float x = number(a), y = number(b);
    if (std::isnan(x) || std::isnan(y)) return std::isnan(x) ? a : b;
    if (x == y) return std::signbit(x) ? a : b;
    return x < y ? a : b;
}
/// Integer arithmetic wraps.
template <class T, class F>
T arithmetic(T a, T b, F f) {
    if constexpr (std::is_integral_v<T>) {
        using U = std::make_unsigned_t<T>;
        return static_cast<T>(f(static_cast<U>(a), static_cast<U>(b)));
    } else {
        return T(f(number(a), number(b)));
    }
}

}  // namespace emu

namespace AscendC {

enum class MaskMode { NORMAL, COUNTER };
/// The mask is state of the core; forms that take a mask set their own, and a kernel must leave it whole.
inline void SetMaskCount() { emu::core->counter_mode = true; }
inline void SetMaskNorm() { emu::core->counter_mode = false; }
template <class T, MaskMode mode>
void SetVectorMask(uint64_t high, uint64_t low) {
    emu::core->mask_hi = high;
    emu::core->mask_lo = low;
}
inline void ResetMask() { emu::core->mask_hi = emu::core->mask_lo = ~0ull; }

#define EMU_BINARY(Op, Allowed, rate, expression)                                                     \
    template <emu::tables::Allowed T>                                                                 \
    void Op(const LocalTensor<T>& d, const LocalTensor<T>& a, const LocalTensor<T>& b, int32_t count, \
            emu::At at = emu::At::current()) {                                                        \
        emu::counted_op(                                                                              \
            #Op, emu::tables::rate, count, at, [](T& out, T x, T y) { out = expression; }, d, a, b);  \
    }                                                                                                 \
    template <emu::tables::Allowed T>                                                                 \
    void Op(const LocalTensor<T>& d, const LocalTensor<T>& a, const LocalTensor<T>& b, uint64_t mask, \
            uint8_t repeat, const BinaryRepeatParams& p, emu::At at = emu::At::current()) {           \
        const bool many = repeat > 1;                                                                 \
        emu::vector_op(                                                                               \
            #Op, emu::tables::rate, emu::lanes_of(mask, 256 / sizeof(T), at), repeat, at,             \
            [](T& out, T x, T y) { out = expression; },                                               \
            emu::operand(d, p.dstBlkStride, emu::stride(at, "dstRep", p.dstRepStride, many)),         \
            emu::operand(a, p.src0BlkStride, emu::stride(at, "src0Rep", p.src0RepStride, many)),      \
            emu::operand(b, p.src1BlkStride, emu::stride(at, "src1Rep", p.src1RepStride, many)));     \
    }
EMU_BINARY(Add, Arithmetic, kSimple, emu::arithmetic(x, y, [](auto p, auto q) { return p + q; }))
EMU_BINARY(Sub, Arithmetic, kSimple, emu::arithmetic(x, y, [](auto p, auto q) { return p - q; }))
EMU_BINARY(Mul, Arithmetic, kSimple, emu::arithmetic(x, y, [](auto p, auto q) { return p * q; }))
EMU_BINARY(Max, Arithmetic, kSimple, emu::larger(x, y))
EMU_BINARY(Min, Arithmetic, kSimple, emu::smaller(x, y))
EMU_BINARY(Div, Floating, kSlow, T(emu::number(x) / emu::number(y)))
EMU_BINARY(And, Bitwise, kSimple, static_cast<T>(x& y))
EMU_BINARY(Or, Bitwise, kSimple, static_cast<T>(x | y))
#undef EMU_BINARY

template <emu::tables::Floating T>
void MulAddDst(const LocalTensor<T>& d, const LocalTensor<T>& a, const LocalTensor<T>& b, int32_t count,
               emu::At at = emu::At::current()) {
    emu::counted_op(
        "MulAddDst", emu::tables::kMulAdd, count, at,
        [](T& out, T x, T y) { out = T(emu::number(x) * emu::number(y) + emu::number(out)); }, d, a, b);
}

#define EMU_SCALAR(Op, Allowed, rate, expression)                                                         \
    template <emu::tables::Allowed T>                                                                     \
    void Op(const LocalTensor<T>& d, const LocalTensor<T>& a, std::type_identity_t<T> y, int32_t count,   \
            emu::At at = emu::At::current()) {                                                            \
        emu::counted_op(#Op, emu::tables::rate, count, at, [y](T& out, T x) { out = expression; }, d, a); \
    }                                                                                                     \
    template <emu::tables::Allowed T>                                                                     \
    void Op(const LocalTensor<T>& d, const LocalTensor<T>& a, std::type_identity_t<T> y, uint64_t mask,   \
            uint8_t repeat, const UnaryRepeatParams& p, emu::At at = emu::At::current()) {                \
        const bool many = repeat > 1;                                                                     \
        emu::vector_op(                                                                                   \
            #Op, emu::tables::rate, emu::lanes_of(mask, 256 / sizeof(T), at), repeat, at,                 \
            [y](T& out, T x) { out = expression; },                                                       \
            emu::operand(d, p.dstBlkStride, emu::stride(at, "dstRep", p.dstRepStride, many)),             \
            emu::operand(a, p.srcBlkStride, emu::stride(at, "srcRep", p.srcRepStride, many)));            \
    }
EMU_SCALAR(Adds, Arithmetic, kSimple, emu::arithmetic(x, y, [](auto p, auto q) { return p + q; }))
EMU_SCALAR(Muls, Arithmetic, kSimple, emu::arithmetic(x, y, [](auto p, auto q) { return p * q; }))
EMU_SCALAR(Maxs, Arithmetic, kSimple, emu::larger(x, y))
EMU_SCALAR(Mins, Arithmetic, kSimple, emu::smaller(x, y))
EMU_SCALAR(ShiftRight, Shiftable, kSimple, static_cast<T>(x >> y))
// A signed left shift keeps the sign bit.
EMU_SCALAR(ShiftLeft, Shiftable, kSimple,
           std::is_signed_v<T> ? static_cast<T>((x & std::numeric_limits<T>::min()) |
                                                ((static_cast<std::make_unsigned_t<T>>(x) << y) &
                                                 std::numeric_limits<T>::max()))
                               : static_cast<T>(static_cast<std::make_unsigned_t<T>>(x) << y))
#undef EMU_SCALAR

template <emu::tables::Floating T>
void Axpy(const LocalTensor<T>& d, const LocalTensor<T>& a, std::type_identity_t<T> y, int32_t count,
          emu::At at = emu::At::current()) {
    emu::counted_op(
        "Axpy", emu::tables::kSimple, count, at,
        [y](T& out, T x) { out = T(emu::number(x) * emu::number(y) + emu::number(out)); }, d, a);
}

// Why the factor: both have low precision on the chip, and a kernel that relies on them must fail its tests.
#define EMU_UNARY(Op, Allowed, rate, expression)                                                         \
    template <emu::tables::Allowed T>                                                                    \
    void Op(const LocalTensor<T>& d, const LocalTensor<T>& a, int32_t count,                             \
            emu::At at = emu::At::current()) {                                                           \
        emu::counted_op(#Op, emu::tables::rate, count, at, [](T& out, T x) { out = expression; }, d, a); \
    }                                                                                                    \
    template <emu::tables::Allowed T>                                                                    \
    void Op(const LocalTensor<T>& d, const LocalTensor<T>& a, uint64_t mask, uint8_t repeat,             \
            const UnaryRepeatParams& p, emu::At at = emu::At::current()) {                               \
        const bool many = repeat > 1;                                                                    \
        emu::vector_op(                                                                                  \
            #Op, emu::tables::rate, emu::lanes_of(mask, 256 / sizeof(T), at), repeat, at,                \
            [](T& out, T x) { out = expression; },                                                       \
            emu::operand(d, p.dstBlkStride, emu::stride(at, "dstRep", p.dstRepStride, many)),            \
            emu::operand(a, p.srcBlkStride, emu::stride(at, "srcRep", p.srcRepStride, many)));           \
    }
EMU_UNARY(Exp, Floating, kSlow, T(std::exp(emu::number(x))))
EMU_UNARY(Ln, Floating, kSlow, T(std::log(emu::number(x))))
EMU_UNARY(Sqrt, Floating, kSlow, T(std::sqrt(emu::number(x))))
EMU_UNARY(Rsqrt, Floating, kSimple, T(1.0f / std::sqrt(emu::number(x)) * (1 + 0x1p-12f)))
EMU_UNARY(Reciprocal, Floating, kSimple, T(1.0f / emu::number(x) * (1 + 0x1p-12f)))
EMU_UNARY(Abs, Floating, kSimple, T(std::fabs(emu::number(x))))
EMU_UNARY(Relu, Rectifiable, kSimple, emu::larger(x, T(0)))
EMU_UNARY(Not, Bitwise, kSimple, static_cast<T>(~x))
#undef EMU_UNARY

template <emu::tables::Fillable T>
void Duplicate(const LocalTensor<T>& d, std::type_identity_t<T> value, int32_t count,
               emu::At at = emu::At::current()) {
    emu::counted_op("Duplicate", emu::tables::kSimple, count, at, [value](T& out) { out = value; }, d);
}
template <emu::tables::Fillable T>
void Duplicate(const LocalTensor<T>& d, std::type_identity_t<T> value, uint64_t mask, uint8_t repeat,
               uint16_t dstBlkStride, uint8_t dstRepStride, emu::At at = emu::At::current()) {
    emu::vector_op(
        "Duplicate", emu::tables::kSimple, emu::lanes_of(mask, 256 / sizeof(T), at), repeat, at,
        [value](T& out) { out = value; },
        emu::operand(d, dstBlkStride, emu::stride(at, "dstRep", dstRepStride, repeat > 1)));
}
template <emu::tables::Fillable T>
void Duplicate(const LocalTensor<T>& d, std::type_identity_t<T> value, uint64_t mask[2], uint8_t repeat,
               uint16_t dstBlkStride, uint8_t dstRepStride, emu::At at = emu::At::current()) {
    const uint64_t* words = mask;
    emu::vector_op(
        "Duplicate", emu::tables::kSimple, emu::lanes_of(words, 256 / sizeof(T), at), repeat, at,
        [value](T& out) { out = value; },
        emu::operand(d, dstBlkStride, emu::stride(at, "dstRep", dstRepStride, repeat > 1)));
}

/// Each of 8 source elements per repeat fills one block of 32 B.
template <emu::tables::Fillable T>
void Brcb(const LocalTensor<T>& d, const LocalTensor<T>& s, uint8_t repeat, const BrcbRepeatParams& p,
          emu::At at = emu::At::current()) {
    constexpr size_t per_block = 32 / sizeof(T);
    const size_t step = emu::stride(at, "dstRep", p.dstRepStride, repeat > 1);
    emu::require(p.dstBlkStride >= 1, 5, at, "Brcb: dstBlkStride 0");
    d.aligned(32, "Brcb", at);
    s.aligned(32, "Brcb", at);
    emu::Instruction op(PIPE_V, "Brcb", at);
    for (size_t r = 0; r < repeat && !emu::machine->dry; ++r) {
        s.check(r * 8 * sizeof(T), 8 * sizeof(T), "Brcb", at);
        op.read(s.memory(), s.offset() + r * 8 * sizeof(T), 8 * sizeof(T));
        for (size_t i = 0; i < 8; ++i) {
            const size_t to = (r * step + i * p.dstBlkStride) * 32;
            d.check(to, 32, "Brcb", at);
            op.write(d.memory(), d.offset() + to, 32);
            for (size_t e = 0; e < per_block; ++e) *d.at_byte(to + e * sizeof(T)) = s.at_index(r * 8 + i);
        }
    }
    op.done(repeat, emu::Chip::kStartVector, repeat);
}

template <emu::tables::Countable T>
void CreateVecIndex(const LocalTensor<T>& d, std::type_identity_t<T> first, uint32_t count,
                    emu::At at = emu::At::current()) {
    float i = 0;
    emu::counted_op(
        "CreateVecIndex", emu::tables::kSimple, count, at,
        [&i, first](T& out) { out = static_cast<T>(emu::number(first) + i++); }, d);
}

}  // namespace AscendC
