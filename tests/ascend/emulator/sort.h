#pragma once

#include "tests/ascend/emulator/reduce.h"

namespace AscendC {

template <class T>
struct MrgSortSrcList {
    LocalTensor<T> src1, src2, src3, src4;
};
struct MrgSort4Info {
    uint16_t elementLengths[4] = {};
    bool ifExhaustedSuspension = false;
    uint16_t validBit = 0, repeatTimes = 1;
};
struct GatherMaskParams {
    uint8_t src0BlockStride = 1;
    uint16_t repeatTimes = 1, src0RepeatStride = 8;
    uint8_t src1RepeatStride = 8;
};

namespace detail {

/// Greater first; equal keys keep their order. NaN counts as the largest.
inline bool before(float a, float b) { return std::isnan(a) ? !std::isnan(b) : a > b; }

}  // namespace detail

/// Per repeat 32 fp32 values with their indices, descending, as records of value and index.
inline void Sort32(const LocalTensor<float>& d, const LocalTensor<float>& value,
                   const LocalTensor<uint32_t>& index, int32_t repeat, emu::At at = emu::At::current()) {
    emu::require(repeat >= 0 && repeat <= 255, 5, at, "Sort32: repeat ", repeat, " must be at most 255");
    emu::Instruction op(PIPE_V, "Sort32", at);
    const size_t count = repeat * 32;
    d.aligned(32, "Sort32", at);
    value.aligned(32, "Sort32", at);
    index.aligned(32, "Sort32", at);
    d.check(0, count * 8, "Sort32", at);
    value.check(0, count * 4, "Sort32", at);
    index.check(0, count * 4, "Sort32", at);
    if (!emu::machine->dry) {
        op.read(value.memory(), value.offset(), count * 4);
        op.read(index.memory(), index.offset(), count * 4);
        op.write(d.memory(), d.offset(), count * 8);
        emu::overlap("Sort32", at, {d.offset(), d.offset() + count * 8},
                     {value.offset(), value.offset() + count * 4}, emu::operand(d), emu::operand(value));
        for (int32_t r = 0; r < repeat; ++r) {
            std::vector<std::pair<float, uint32_t>> records;
            for (int i = 0; i < 32; ++i)
                records.emplace_back(value.at_index(r * 32 + i), index.at_index(r * 32 + i));
            std::stable_sort(records.begin(), records.end(),
                             [](const auto& a, const auto& b) { return detail::before(a.first, b.first); });
            for (int i = 0; i < 32; ++i) {
                d.at_index((r * 32 + i) * 2) = records[i].first;
                std::memcpy(&d.at_index((r * 32 + i) * 2 + 1), &records[i].second, 4);
            }
        }
    }
    op.done(count / emu::tables::kSort(4), emu::Chip::kStartVector, repeat);
}

/// Merges two to four descending lists of records; equal keys: the earlier list first.
template <class T>
    requires std::is_same_v<T, float>
void MrgSort(const LocalTensor<T>& d, const MrgSortSrcList<T>& lists, const MrgSort4Info& info,
             emu::At at = emu::At::current()) {
    emu::require(info.validBit == 3 || info.validBit == 7 || info.validBit == 15, 5, at, "MrgSort: validBit ",
                 info.validBit, " must be 3, 7 or 15");
    emu::require(info.repeatTimes == 1 && !info.ifExhaustedSuspension, 5, at,
                 "MrgSort: one whole merge is used here");
    const int num = std::popcount(info.validBit);
    const LocalTensor<T>* const sources[] = {&lists.src1, &lists.src2, &lists.src3, &lists.src4};
    emu::Instruction op(PIPE_V, "MrgSort", at);
    d.aligned(32, "MrgSort", at);
    size_t total = 0;
    std::vector<std::pair<float, uint32_t>> records;
    for (int i = 0; i < num; ++i) total += info.elementLengths[i];
    d.check(0, total * 8, "MrgSort", at);
    for (int i = 0; i < num; ++i) {
        const LocalTensor<T>& s = *sources[i];
        const size_t length = info.elementLengths[i];
        emu::require(length >= 1 && length <= 4095, 5, at, "MrgSort: list length ", length,
                     " must be 1 to 4095");
        s.aligned(8, "MrgSort", at);
        s.check(0, length * 8, "MrgSort", at);
        if (emu::machine->dry) continue;
        op.read(s.memory(), s.offset(), length * 8);
        emu::require(s.offset() >= d.offset() + total * 8 || s.offset() + length * 8 <= d.offset(), 8, at,
                     "MrgSort: source and destination overlap");
        for (size_t r = 0; r < length; ++r) {
            uint32_t index;
            std::memcpy(&index, &s.at_index(2 * r + 1), 4);
            records.emplace_back(s.at_index(2 * r), index);
            emu::require(r == 0 || !detail::before(s.at_index(2 * r), s.at_index(2 * r - 2)), 5, at,
                         "MrgSort: list ", i, " is not sorted");
        }
    }
    if (!emu::machine->dry) {
        op.write(d.memory(), d.offset(), total * 8);
        std::stable_sort(records.begin(), records.end(),
                         [](const auto& a, const auto& b) { return detail::before(a.first, b.first); });
        for (size_t r = 0; r < total; ++r) {
            d.at_index(2 * r) = records[r].first;
            std::memcpy(&d.at_index(2 * r + 1), &records[r].second, 4);
        }
    }
    op.done(total / emu::tables::kSort(4), emu::Chip::kStartVector);
}

/// Compacts elements: pattern 1 the even ones, 2 the odd ones, 3 to 6 one of four, 7 all. `mask`: elements of
/// a repeat.
template <emu::tables::Gatherable T>
void GatherMask(const LocalTensor<T>& d, const LocalTensor<T>& s, uint8_t pattern, bool reduceMode,
                uint32_t mask, const GatherMaskParams& p, uint64_t& count, emu::At at = emu::At::current()) {
    emu::require(pattern >= 1 && pattern <= 7, 5, at, "GatherMask: pattern ", int(pattern),
                 " must be 1 to 7");
    emu::require(reduceMode && p.src0BlockStride == 1, 5, at, "GatherMask: the counted mode is used here");
    emu::Instruction op(PIPE_V, "GatherMask", at);
    d.aligned(32, "GatherMask", at);
    s.aligned(32, "GatherMask", at);
    const size_t step = emu::stride(at, "src0Rep", p.src0RepeatStride, p.repeatTimes > 1) * 32;
    count = 0;
    for (size_t r = 0; r < p.repeatTimes; ++r) {
        s.check(r * step, mask * sizeof(T), "GatherMask", at);
        if (!emu::machine->dry) op.read(s.memory(), s.offset() + r * step, mask * sizeof(T));
        for (uint32_t i = 0; i < mask; ++i) {
            const bool taken = pattern == 7 || (pattern <= 2 ? i % 2 == pattern - 1u : i % 4 == pattern - 3u);
            if (!taken) continue;
            d.check(count * sizeof(T), sizeof(T), "GatherMask", at);
            if (!emu::machine->dry) {
                const T x = *s.at_byte(r * step + i * sizeof(T));
                op.write(d.memory(), d.offset() + count * sizeof(T), sizeof(T));
                d.at_index(count) = x;
            }
            ++count;
        }
    }
    op.done(p.repeatTimes * mask / emu::tables::kGatherMask(sizeof(T)), emu::Chip::kStartVector,
            p.repeatTimes);
}

/// d[i] = s at byte offset[i] + base.
template <emu::tables::Gatherable T>
void Gather(const LocalTensor<T>& d, const LocalTensor<T>& s, const LocalTensor<uint32_t>& offset,
            uint32_t base, uint32_t count, emu::At at = emu::At::current()) {
    emu::Instruction op(PIPE_V, "Gather", at);
    d.aligned(32, "Gather", at);
    d.check(0, count * sizeof(T), "Gather", at);
    offset.check(0, count * 4, "Gather", at);
    if (!emu::machine->dry) {
        op.read(offset.memory(), offset.offset(), count * 4);
        for (uint32_t i = 0; i < count; ++i) {
            const size_t from = base + offset.at_index(i);
            emu::require(from % sizeof(T) == 0, 3, at, "Gather: byte offset ", from, " of element ", i);
            s.check(from, sizeof(T), "Gather", at);
            op.read(s.memory(), s.offset() + from, sizeof(T));
        }
        op.write(d.memory(), d.offset(), count * sizeof(T));
        for (uint32_t i = 0; i < count; ++i) d.at_index(i) = *s.at_byte(base + offset.at_index(i));
    }
    op.done(count / emu::tables::kGather(sizeof(T)), emu::Chip::kStartVector);
}

}  // namespace AscendC
