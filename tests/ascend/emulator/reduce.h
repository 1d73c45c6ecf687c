#pragma once

#include "tests/ascend/emulator/cast.h"

namespace AscendC {

namespace detail {

/// Reduces the active lanes of every repeat by a binary tree over lanes, as the chip does.
template <class T, class F>
T tree(std::vector<T> v, F f) {
    for (size_t n = v.size(); n > 1; n = (n + 1) / 2) {
        for (size_t i = 0; i < n / 2; ++i) v[i] = f(v[2 * i], v[2 * i + 1]);
        if (n % 2) v[n / 2] = v[n - 1];
    }
    return v[0];
}

template <class T, class F>
void whole_reduce(const char* name, const LocalTensor<T>& d, const LocalTensor<T>& s, int32_t mask,
                  int32_t repeat, int32_t dst_step, int32_t src_block, int32_t src_step, size_t results,
                  const emu::At& at, F&& f) {
    const std::vector<uint8_t> active = emu::lanes_of(mask, 256 / sizeof(T), at);
    emu::require(repeat >= 0 && repeat <= 255, 5, at, name, ": repeat ", repeat, " must be at most 255");
    const auto step = static_cast<size_t>(emu::stride(at, "dstRep", dst_step, repeat > 1));
    const auto from = emu::operand(s, src_block, emu::stride(at, "srcRep", src_step, repeat > 1));
    emu::Instruction op(PIPE_V, name, at);
    s.aligned(32, name, at);
    d.aligned(results * sizeof(T), name, at);
    for (int32_t r = 0; r < repeat && !emu::machine->dry; ++r) {
        from.touch(op, name, r, active, false, at);
        const size_t to = r * step * results * sizeof(T);
        d.check(to, results * sizeof(T), name, at);
        op.write(d.memory(), d.offset() + to, results * sizeof(T));
        std::vector<T> lanes;
        for (size_t i = 0; i < active.size(); ++i)
            if (active[i]) lanes.push_back(*s.at_byte(from.byte(r, i)));
        f(d.at_byte(to), lanes);
    }
    op.done(repeat * (256.0 / sizeof(T)) / emu::tables::kReduce(sizeof(T)), emu::Chip::kStartVector, repeat);
}

template <class T, class F>
void whole_extreme(const char* name, const LocalTensor<T>& d, const LocalTensor<T>& s, int32_t mask,
                   int32_t repeat, int32_t dst_step, int32_t src_block, int32_t src_step, ReduceOrder order,
                   const emu::At& at, F f) {
    const bool with_index = order != ReduceOrder::ORDER_ONLY_VALUE;
    whole_reduce(name, d, s, mask, repeat, dst_step, src_block, src_step, with_index ? 2 : 1, at,
                 [&](T* out, const std::vector<T>& lanes) {
                     const T best = tree(lanes, f);
                     size_t index = 0;
                     const auto same = [&](T x) { return std::memcmp(&x, &best, sizeof(T)) == 0; };
                     while (!same(lanes[index])) ++index;
                     const bool index_first = order == ReduceOrder::ORDER_INDEX_VALUE;
                     out[with_index && index_first ? 1 : 0] = best;
                     if (!with_index) return;
                     T bits{};
                     const auto narrow = static_cast<uint32_t>(index);
                     std::memcpy(&bits, &narrow, sizeof(T));
                     out[index_first ? 0 : 1] = bits;
                 });
}

}  // namespace detail

template <emu::tables::Floating T>
void WholeReduceMax(const LocalTensor<T>& d, const LocalTensor<T>& s, int32_t mask, int32_t repeat,
                    int32_t dstRep, int32_t srcBlk, int32_t srcRep,
                    ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX, emu::At at = emu::At::current()) {
    detail::whole_extreme("WholeReduceMax", d, s, mask, repeat, dstRep, srcBlk, srcRep, order, at,
                          emu::larger<T>);
}
template <emu::tables::Floating T>
void WholeReduceMin(const LocalTensor<T>& d, const LocalTensor<T>& s, int32_t mask, int32_t repeat,
                    int32_t dstRep, int32_t srcBlk, int32_t srcRep,
                    ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX, emu::At at = emu::At::current()) {
    detail::whole_extreme("WholeReduceMin", d, s, mask, repeat, dstRep, srcBlk, srcRep, order, at,
                          emu::smaller<T>);
}
template <emu::tables::Floating T>
void WholeReduceSum(const LocalTensor<T>& d, const LocalTensor<T>& s, int32_t mask, int32_t repeat,
                    int32_t dstRep, int32_t srcBlk, int32_t srcRep, emu::At at = emu::At::current()) {
    detail::whole_reduce("WholeReduceSum", d, s, mask, repeat, dstRep, srcBlk, srcRep, 1, at,
                         [](T* out, const std::vector<T>& lanes) {
                             *out = detail::tree(lanes,
                                                 [](T a, T b) { return T(emu::number(a) + emu::number(b)); });
                         });
}

namespace detail {

template <class T, class F>
void block_reduce(const char* name, const LocalTensor<T>& d, const LocalTensor<T>& s, int32_t repeat,
                  int32_t mask, int32_t dst_step, int32_t src_block, int32_t src_step, const emu::At& at,
                  F f) {
    constexpr size_t per_block = 32 / sizeof(T);
    const std::vector<uint8_t> active = emu::lanes_of(mask, 256 / sizeof(T), at);
    emu::require(repeat <= 255, 5, at, name, ": repeat ", repeat, " must be at most 255");
    const auto step = static_cast<size_t>(emu::stride(at, "dstRep", dst_step, repeat > 1));
    const auto from = emu::operand(s, src_block, emu::stride(at, "srcRep", src_step, repeat > 1));
    emu::Instruction op(PIPE_V, name, at);
    s.aligned(32, name, at);
    d.aligned(8 * sizeof(T), name, at);
    for (int32_t r = 0; r < repeat && !emu::machine->dry; ++r) {
        from.touch(op, name, r, active, false, at);
        for (size_t b = 0; b * per_block < static_cast<size_t>(mask); ++b) {
            const size_t to = (r * step * 8 + b) * sizeof(T);
            d.check(to, sizeof(T), name, at);
            op.write(d.memory(), d.offset() + to, sizeof(T));
            std::vector<T> lanes;
            for (size_t i = b * per_block; i < std::min<size_t>(mask, (b + 1) * per_block); ++i)
                lanes.push_back(*s.at_byte(from.byte(r, i)));
            *d.at_byte(to) = tree(lanes, f);
        }
    }
    op.done(repeat * (256.0 / sizeof(T)) / emu::tables::kReduce(sizeof(T)), emu::Chip::kStartVector, repeat);
}

}  // namespace detail

/// Each 32 B block becomes one value; 8 values per repeat. Mask and repeat stand the other way round than in
/// the whole forms.
template <emu::tables::Floating T>
void BlockReduceMax(const LocalTensor<T>& d, const LocalTensor<T>& s, int32_t repeat, int32_t mask,
                    int32_t dstRep, int32_t srcBlk, int32_t srcRep, emu::At at = emu::At::current()) {
    detail::block_reduce("BlockReduceMax", d, s, repeat, mask, dstRep, srcBlk, srcRep, at, emu::larger<T>);
}
template <emu::tables::Floating T>
void BlockReduceSum(const LocalTensor<T>& d, const LocalTensor<T>& s, int32_t repeat, int32_t mask,
                    int32_t dstRep, int32_t srcBlk, int32_t srcRep, emu::At at = emu::At::current()) {
    detail::block_reduce("BlockReduceSum", d, s, repeat, mask, dstRep, srcBlk, srcRep, at,
                         [](T a, T b) { return T(emu::number(a) + emu::number(b)); });
}

}  // namespace AscendC
