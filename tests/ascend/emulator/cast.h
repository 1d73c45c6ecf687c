#pragma once

#include "tests/ascend/emulator/vector.h"

namespace emu {

/// One element from S to D: integers saturate and NaN becomes 0; floats round by `mode`.
template <class D, class S>
D convert(S s, RoundMode mode) {
    if constexpr (std::is_same_v<D, S>) {
        return static_cast<D>(round_integer(number(s), mode) + 0.0);
    } else if constexpr (std::is_integral_v<D>) {
        if constexpr (std::is_integral_v<S>) {
            const auto wide = static_cast<int64_t>(s);
            return static_cast<D>(
                std::clamp<int64_t>(wide, std::numeric_limits<D>::min(), std::numeric_limits<D>::max()));
        } else {
            const double x = number(s);
            if (std::isnan(x)) return 0;
            const double y = round_integer(x, mode);
            if (y <= static_cast<double>(std::numeric_limits<D>::min())) return std::numeric_limits<D>::min();
            if (y >= static_cast<double>(std::numeric_limits<D>::max())) return std::numeric_limits<D>::max();
            return static_cast<D>(y);
        }
    } else if constexpr (std::is_same_v<D, float>) {
        if constexpr (std::is_same_v<S, int32_t>) {
            if (mode != RoundMode::CAST_NONE && mode != RoundMode::CAST_RINT)
                return static_cast<float>(round_binary(s, 23, -126, 0x1.FFFFFEp127, mode));
        }
        return static_cast<float>(s);
    } else if constexpr (std::is_integral_v<S>) {
        return D(static_cast<float>(s), mode);
    } else {
        return D(number(s), mode);
    }
}

}  // namespace emu

namespace AscendC {

template <class D, class S>
    requires emu::tables::Castable<D, S>
void Cast(const LocalTensor<D>& d, const LocalTensor<S>& s, RoundMode mode, uint32_t count,
          emu::At at = emu::At::current()) {
    emu::require(emu::tables::cast_modes<D, S>() & emu::tables::bit(mode), 1, at,
                 "Cast: these types have no such mode");
    const emu::tables::Rate rate =
        sizeof(D) <= 2 && sizeof(S) <= 2 ? emu::tables::Rate{128, 64} : emu::tables::Rate{64, 64};
    emu::counted_op("Cast", rate, count, at, [mode](D& out, S x) { out = emu::convert<D>(x, mode); }, d, s);
}

/// One bit per element, least significant first. NaN compares false in every mode, NE too.
template <emu::tables::Floating T>
bool holds(T x, T y, CMPMODE mode) {
    const float a = emu::number(x), b = emu::number(y);
    if (std::isnan(a) || std::isnan(b)) return false;
    switch (mode) {
        case CMPMODE::LT: return a < b;
        case CMPMODE::GT: return a > b;
        case CMPMODE::EQ: return a == b;
        case CMPMODE::LE: return a <= b;
        case CMPMODE::GE: return a >= b;
        default: return a != b;
    }
}

namespace detail {

template <class T, class F>
void compare(const char* name, const LocalTensor<uint8_t>& d, const LocalTensor<T>& a, uint32_t count,
             const emu::At& at, F&& f) {
    emu::require(count * sizeof(T) % 256 == 0, 18, at, name, " of ", count * sizeof(T),
                 " bytes; must be a multiple of 256");
    emu::Instruction op(PIPE_V, name, at);
    d.aligned(32, name, at);
    a.aligned(32, name, at);
    d.check(0, count / 8, name, at);
    a.check(0, count * sizeof(T), name, at);
    if (!emu::machine->dry) {
        f(op);
        op.read(a.memory(), a.offset(), count * sizeof(T));
        op.write(d.memory(), d.offset(), count / 8);
    }
    op.done(count / emu::tables::kSimple(sizeof(T)), emu::Chip::kStartVector, count * sizeof(T) / 256);
}

template <class T, class F>
void set_bits(const LocalTensor<uint8_t>& d, uint32_t count, F&& bit) {
    for (uint32_t i = 0; i < count; i += 8) {
        uint8_t byte = 0;
        for (uint32_t j = 0; j < 8; ++j) byte |= static_cast<uint8_t>(bit(i + j)) << j;
        d.at_index(i / 8) = byte;
    }
}

}  // namespace detail

template <class T>
    requires emu::tables::Floating<T>
void Compare(const LocalTensor<uint8_t>& d, const LocalTensor<T>& a, const LocalTensor<T>& b, CMPMODE mode,
             uint32_t count, emu::At at = emu::At::current()) {
    detail::compare("Compare", d, a, count, at, [&](emu::Instruction& op) {
        b.check(0, count * sizeof(T), "Compare", at);
        op.read(b.memory(), b.offset(), count * sizeof(T));
        detail::set_bits<T>(d, count, [&](uint32_t i) { return holds(a.at_index(i), b.at_index(i), mode); });
    });
}
template <class T>
    requires emu::tables::Floating<T>
void CompareScalar(const LocalTensor<uint8_t>& d, const LocalTensor<T>& a, std::type_identity_t<T> b,
                   CMPMODE mode, uint32_t count, emu::At at = emu::At::current()) {
    detail::compare("CompareScalar", d, a, count, at, [&](emu::Instruction&) {
        detail::set_bits<T>(d, count, [&](uint32_t i) { return holds(a.at_index(i), b, mode); });
    });
}

namespace detail {

template <class T>
void select(const LocalTensor<T>& d, const LocalTensor<uint8_t>& mask, uint32_t count, const emu::At& at,
            emu::Instruction& op) {
    emu::require(count * sizeof(T) % 256 == 0, 18, at, "Select of ", count * sizeof(T),
                 " bytes; must be a multiple of 256");
    mask.check(0, count / 8, "Select", at);
    d.aligned(32, "Select", at);
    d.check(0, count * sizeof(T), "Select", at);
    if (emu::machine->dry) return;
    op.read(mask.memory(), mask.offset(), count / 8);
    op.write(d.memory(), d.offset(), count * sizeof(T));
}
inline bool mask_bit(const LocalTensor<uint8_t>& mask, uint32_t i) {
    return mask.at_index(i / 8) >> (i % 8) & 1;
}

}  // namespace detail

template <class T>
    requires emu::tables::Floating<T>
void Select(const LocalTensor<T>& d, const LocalTensor<uint8_t>& mask, const LocalTensor<T>& a,
            const LocalTensor<T>& b, SELMODE mode, uint32_t count, emu::At at = emu::At::current()) {
    emu::require(mode == SELMODE::VSEL_TENSOR_TENSOR_MODE, 5, at, "Select: two tensors need the tensor mode");
    emu::Instruction op(PIPE_V, "Select", at);
    for (const LocalTensor<T>* s : {&a, &b}) {
        s->check(0, count * sizeof(T), "Select", at);
        if (!emu::machine->dry) op.read(s->memory(), s->offset(), count * sizeof(T));
    }
    detail::select(d, mask, count, at, op);
    for (uint32_t i = 0; i < count && !emu::machine->dry; ++i)
        d.at_index(i) = detail::mask_bit(mask, i) ? a.at_index(i) : b.at_index(i);
    op.done(count / emu::tables::kSimple(sizeof(T)), emu::Chip::kStartVector, count * sizeof(T) / 256);
}
template <class T>
    requires emu::tables::Floating<T>
void Select(const LocalTensor<T>& d, const LocalTensor<uint8_t>& mask, const LocalTensor<T>& a,
            std::type_identity_t<T> b, SELMODE mode, uint32_t count, emu::At at = emu::At::current()) {
    emu::require(mode == SELMODE::VSEL_TENSOR_SCALAR_MODE, 5, at, "Select: a scalar needs the scalar mode");
    emu::Instruction op(PIPE_V, "Select", at);
    a.check(0, count * sizeof(T), "Select", at);
    if (!emu::machine->dry) op.read(a.memory(), a.offset(), count * sizeof(T));
    detail::select(d, mask, count, at, op);
    for (uint32_t i = 0; i < count && !emu::machine->dry; ++i)
        d.at_index(i) = detail::mask_bit(mask, i) ? a.at_index(i) : b;
    op.done(count / emu::tables::kSimple(sizeof(T)), emu::Chip::kStartVector, count * sizeof(T) / 256);
}

}  // namespace AscendC
