#pragma once

#include "tests/ascend/emulator/sync.h"

namespace AscendC {

struct DataCopyParams {
    uint16_t blockCount = 1, blockLen = 0, srcGap = 0, dstGap = 0;  // in units of 32 B
};
struct DataCopyExtParams {
    uint16_t blockCount = 1;
    uint32_t blockLen = 0;  // bytes
    uint32_t srcStride = 0, dstStride = 0;
    uint32_t rsv = 0;
};
template <class T>
struct DataCopyPadExtParams {
    bool isPad = false;
    uint8_t leftPadding = 0, rightPadding = 0;
    T paddingValue{};
};
struct Nd2NzParams {
    uint16_t ndNum = 0, nValue = 0, dValue = 0, srcNdMatrixStride = 0, srcDValue = 0, dstNzC0Stride = 0,
             dstNzNStride = 0, dstNzMatrixStride = 0;
};
template <class T>
struct InitConstValueParams {
    uint16_t repeatTimes = 0, blockNum = 0, dstGap = 0;
    T initValue{};
};

namespace detail {

template <class T>
concept Global = requires(T t) { t.SetL2CacheHint(CacheMode::CACHE_MODE_NORMAL); };

inline void count_alignment(const void* gm, size_t burst) {
    if (reinterpret_cast<uintptr_t>(gm) % 512 != 0 || burst < 4096) ++emu::machine->unaligned_copies;
}

/// Copies `rows` of `bytes`, with the given distances between row starts, from global to local memory.
template <class T>
void load_rows(const char* name, const LocalTensor<T>& dst, const GlobalTensor<T>& src, size_t rows,
               size_t bytes, size_t dst_step, size_t src_step, const emu::At& at) {
    emu::Instruction op(PIPE_MTE2, name, at);
    dst.aligned(32, name, at);
    double cycles = 0;
    for (size_t r = 0; r < rows; ++r) {
        dst.check(r * dst_step, bytes, name, at);
        src.check(r * src_step, bytes, name, at);
        op.read_gm(src.at_byte(r * src_step), bytes);
        op.write(dst.memory(), dst.offset() + r * dst_step, bytes);
        if (!emu::machine->dry) std::memcpy(dst.at_byte(r * dst_step), src.at_byte(r * src_step), bytes);
        cycles += op.gm_read_cycles(src.at_byte(r * src_step), bytes);
    }
    count_alignment(src.GetPhyAddr(), bytes);
    op.done(cycles, emu::Chip::kStartCopy, rows);
}

template <class T>
void store_rows(const char* name, const GlobalTensor<T>& dst, const LocalTensor<T>& src, size_t rows,
                size_t bytes, size_t dst_step, size_t src_step, const emu::At& at) {
    emu::require(emu::core->is_aic == false, 1, at, name, ": L1 has no path to global memory");
    emu::Instruction op(PIPE_MTE3, name, at);
    src.aligned(32, name, at);
    for (size_t r = 0; r < rows; ++r) {
        src.check(r * src_step, bytes, name, at);
        dst.check(r * dst_step, bytes, name, at);
        op.read(src.memory(), src.offset() + r * src_step, bytes);
        op.write_gm(dst.at_byte(r * dst_step), bytes);
        if (emu::machine->dry) continue;
        if (!emu::core->atomic) {
            std::memcpy(dst.at_byte(r * dst_step), src.at_byte(r * src_step), bytes);
        } else if constexpr (std::is_arithmetic_v<T>) {
            for (size_t i = 0; i < bytes; i += sizeof(T))
                *reinterpret_cast<T*>(dst.at_byte(r * dst_step + i)) += *src.at_byte(r * src_step + i);
        }
    }
    op.done(rows * bytes / emu::Chip::kUbToL2, emu::Chip::kStartCopy, rows);
}

inline void check_block_params(size_t count, size_t bytes, const emu::At& at) {
    emu::require(count >= 1 && count <= 4095, 5, at, "blockCount ", count, " must be 1 to 4095");
    emu::require(bytes >= 1 && bytes <= 2097151, 5, at, "blockLen ", bytes, " must be 1 to 2097151 bytes");
}

}  // namespace detail

template <class T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, uint32_t count,
              emu::At at = emu::At::current()) {
    emu::require(count * sizeof(T) % 32 == 0, 4, at, "DataCopy of ", count * sizeof(T),
                 " bytes would be cut to a multiple of 32");
    detail::load_rows("DataCopy", dst, src, 1, count * sizeof(T), 0, 0, at);
}
template <class T>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, uint32_t count,
              emu::At at = emu::At::current()) {
    emu::require(count * sizeof(T) % 32 == 0, 4, at, "DataCopy of ", count * sizeof(T),
                 " bytes would be cut to a multiple of 32");
    detail::store_rows("DataCopy", dst, src, 1, count * sizeof(T), 0, 0, at);
}
/// Blocks of 32 B units; a gap runs from the end of a block to the start of the next.
template <class T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyParams& p,
              emu::At at = emu::At::current()) {
    detail::check_block_params(p.blockCount, p.blockLen * 32, at);
    const size_t src_gap = emu::stride(at, "srcGap", p.srcGap, p.blockCount > 1);
    const size_t dst_gap = emu::stride(at, "dstGap", p.dstGap, p.blockCount > 1);
    detail::load_rows("DataCopy", dst, src, p.blockCount, p.blockLen * 32, (p.blockLen + dst_gap) * 32,
                      (p.blockLen + src_gap) * 32, at);
}
template <class T>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& p,
              emu::At at = emu::At::current()) {
    detail::check_block_params(p.blockCount, p.blockLen * 32, at);
    const size_t src_gap = emu::stride(at, "srcGap", p.srcGap, p.blockCount > 1);
    const size_t dst_gap = emu::stride(at, "dstGap", p.dstGap, p.blockCount > 1);
    detail::store_rows("DataCopy", dst, src, p.blockCount, p.blockLen * 32, (p.blockLen + dst_gap) * 32,
                       (p.blockLen + src_gap) * 32, at);
}
/// Within UB, on the vector pipe.
template <class T>
void DataCopy(const LocalTensor<T>& dst, const LocalTensor<T>& src, uint32_t count,
              emu::At at = emu::At::current()) {
    const size_t bytes = count * sizeof(T);
    emu::require(bytes % 32 == 0, 4, at, "DataCopy of ", bytes, " bytes would be cut to a multiple of 32");
    emu::require(&dst.memory() == &emu::core->ub && &src.memory() == &emu::core->ub, 1, at,
                 "DataCopy: there is no path between these memories");
    emu::Instruction op(PIPE_V, "DataCopy", at);
    dst.aligned(32, "DataCopy", at);
    src.aligned(32, "DataCopy", at);
    dst.check(0, bytes, "DataCopy", at);
    src.check(0, bytes, "DataCopy", at);
    op.read(src.memory(), src.offset(), bytes);
    op.write(dst.memory(), dst.offset(), bytes);
    if (!emu::machine->dry) std::memmove(dst.at_byte(0), src.at_byte(0), bytes);
    op.done(bytes / emu::Chip::kUbCopy, emu::Chip::kStartVector);
}

/// Exact byte lengths; rows start at 32 B boundaries in UB. Filler up to the boundary: the padding value,
/// else garbage.
template <class T>
void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyExtParams& p,
                 const DataCopyPadExtParams<T>& pad, emu::At at = emu::At::current()) {
    detail::check_block_params(p.blockCount, p.blockLen, at);
    emu::require(pad.leftPadding == 0, 5, at, "DataCopyPad: left padding is not used here");
    emu::require(pad.rightPadding * sizeof(T) <= 32, 5, at, "DataCopyPad: padding beyond 32 bytes");
    const bool several = p.blockCount > 1;
    const size_t row = (p.blockLen + 31) / 32 * 32;
    const size_t src_step = p.blockLen + emu::stride(at, "srcStride", p.srcStride, several);
    const size_t dst_step = row + emu::stride(at, "dstStride", p.dstStride, several) * 32;
    detail::load_rows("DataCopyPad", dst, src, p.blockCount, p.blockLen, dst_step, src_step, at);
    if (!pad.isPad || emu::machine->dry) return;
    const size_t end = p.blockLen + pad.rightPadding * sizeof(T);
    emu::require(end <= row, 5, at, "DataCopyPad: padding runs into the next block");
    for (size_t r = 0; r < p.blockCount; ++r) {
        dst.check(r * dst_step, end, "DataCopyPad", at);
        for (size_t b = p.blockLen; b < end; b += sizeof(T)) {
            *dst.at_byte(r * dst_step + b) = pad.paddingValue;
            std::fill_n(dst.memory().valid.begin() + dst.offset() + r * dst_step + b, sizeof(T), 1);
        }
    }
}
template <class T>
void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyExtParams& p,
                 emu::At at = emu::At::current()) {
    detail::check_block_params(p.blockCount, p.blockLen, at);
    const bool several = p.blockCount > 1;
    const size_t dst_step = p.blockLen + emu::stride(at, "dstStride", p.dstStride, several);
    const size_t src_step =
        (p.blockLen + 31) / 32 * 32 + emu::stride(at, "srcStride", p.srcStride, several) * 32;
    detail::store_rows("DataCopyPad", dst, src, p.blockCount, p.blockLen, dst_step, src_step, at);
}

/// Row-major [nValue, dValue] to the fractal order of L1: column groups of 32 B, rows within. Columns are
/// filled with zeros up to 32 B, rows are not.
template <class T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const Nd2NzParams& p,
              emu::At at = emu::At::current()) {
    emu::require(&dst.memory() == &emu::core->l1, 1, at, "Nd2Nz leads to L1 only");
    emu::require(p.ndNum == 1, 5, at, "Nd2Nz: one matrix per copy is used here");
    emu::require(p.nValue >= 1 && p.nValue <= 16384 && p.dValue >= 1 && p.srcDValue >= p.dValue, 5, at,
                 "Nd2Nz: nValue ", p.nValue, ", dValue ", p.dValue, ", srcDValue ", p.srcDValue);
    const size_t c0_stride = emu::stride(at, "dstNzC0Stride", p.dstNzC0Stride, p.dValue * sizeof(T) > 32);
    const size_t n_stride = emu::stride(at, "dstNzNStride", p.dstNzNStride, p.nValue > 1);
    const size_t d_stride = emu::stride(at, "srcDValue", p.srcDValue, p.nValue > 1);
    emu::require(c0_stride >= 1 && c0_stride <= 16384 && n_stride >= 1 && n_stride <= 16384, 5, at,
                 "Nd2Nz: strides must be 1 to 16384");
    emu::Instruction op(PIPE_MTE2, "Nd2Nz", at);
    dst.aligned(32, "Nd2Nz", at);
    constexpr size_t c0 = 32 / sizeof(T);
    const size_t row_bytes = p.dValue * sizeof(T), groups = (p.dValue + c0 - 1) / c0;
    double cycles = 0;
    for (size_t r = 0; r < p.nValue; ++r) {
        const size_t from = r * d_stride * sizeof(T);
        src.check(from, row_bytes, "Nd2Nz", at);
        op.read_gm(src.at_byte(from), row_bytes);
        cycles += op.gm_read_cycles(src.at_byte(from), row_bytes);
        if (emu::machine->dry) continue;
        for (size_t g = 0; g < groups; ++g) {
            const size_t to = (g * c0_stride + r * n_stride) * 32,
                         bytes = std::min<size_t>(32, row_bytes - g * 32);
            dst.check(to, 32, "Nd2Nz", at);
            op.write(dst.memory(), dst.offset() + to, 32);
            std::memset(static_cast<void*>(dst.at_byte(to)), 0, 32);
            std::memcpy(static_cast<void*>(dst.at_byte(to)), src.at_byte(from + g * 32), bytes);
        }
    }
    detail::count_alignment(src.GetPhyAddr(), row_bytes);
    op.done(cycles, emu::Chip::kStartCopy, p.nValue);
}

/// Fills `repeatTimes` runs of `blockNum` blocks (32 B in L1) with a value.
template <class T>
void InitConstValue(const LocalTensor<T>& dst, const InitConstValueParams<T>& p,
                    emu::At at = emu::At::current()) {
    emu::require(&dst.memory() == &emu::core->l1, 1, at, "InitConstValue is used on L1 only");
    emu::require(p.repeatTimes >= 1 && p.blockNum >= 1, 5, at,
                 "InitConstValue: repeatTimes and blockNum must be positive");
    const size_t gap = emu::stride(at, "dstGap", p.dstGap, p.repeatTimes > 1);
    emu::Instruction op(PIPE_MTE2, "InitConstValue", at);
    dst.aligned(32, "InitConstValue", at);
    for (size_t r = 0; r < p.repeatTimes; ++r) {
        const size_t to = r * (p.blockNum + gap) * 32, bytes = p.blockNum * 32;
        dst.check(to, bytes, "InitConstValue", at);
        op.write(dst.memory(), dst.offset() + to, bytes);
        if (emu::machine->dry) continue;
        for (size_t i = 0; i < bytes; i += sizeof(T)) *dst.at_byte(to + i) = p.initValue;
    }
    op.done(p.repeatTimes * p.blockNum * 32 / 256.0, emu::Chip::kStartCopy, p.repeatTimes);
}

template <class T>
    requires std::is_arithmetic_v<T>
void SetAtomicAdd() {
    emu::core->atomic = true;
}
inline void SetAtomicNone() { emu::core->atomic = false; }

}  // namespace AscendC
