#pragma once

#include <kernel_operator.h>

#include <cstdint>

/// The device compiler wants a lambda marked as device code; the emulator defines this as nothing.
#ifndef MMX_DEVICE_LAMBDA
#define MMX_DEVICE_LAMBDA __attribute__((cce_aicore))
#endif

/// What every kernel body uses. Device code: nothing from the host side (checks, tilings) may be called.
namespace mmx::ascend {

using namespace AscendC;

/// Bytes of UB that one AIV may use: 192 KiB less what the system and reserved-space instructions take.
constexpr uint32_t kUbBytes = 188160;
constexpr uint32_t kBlock = 32;       // bytes of the smallest unit that a copy or a vector block moves
constexpr uint32_t kLanes = 64;       // fp32 lanes of one repeat
constexpr uint32_t kMaxRepeat = 255;  // repeats of one instruction, and the largest repeat stride in blocks
constexpr uint32_t kFractal = 16;     // rows of a fractal

__aicore__ inline constexpr uint32_t round_up(uint32_t a, uint32_t b) { return (a + b - 1) / b * b; }
__aicore__ inline constexpr uint32_t div_up(uint32_t a, uint32_t b) { return (a + b - 1) / b; }
template <class T>
__aicore__ inline constexpr T least(T a, T b) {
    return a < b ? a : b;
}
template <class T>
__aicore__ inline constexpr T most(T a, T b) {
    return a > b ? a : b;
}

/// A view of global memory from a plain pointer of Params. Why through an integer: on the device, pointers to
/// global memory are a type of their own.
template <class T>
__aicore__ inline GlobalTensor<T> global(const void* data) {
    GlobalTensor<T> tensor;
    tensor.SetGlobalBuffer((__gm__ T*)(uint64_t)data);
    return tensor;
}

/// Copy of `rows` rows of `count` elements from global memory, rows `stride` elements apart, to rows `pitch`
/// elements apart in UB. Filler up to the next 32 bytes is zero.
template <class T>
__aicore__ inline void load_rows(const LocalTensor<T>& dst, const GlobalTensor<T>& src, uint32_t rows,
                                 uint32_t count, int64_t stride, uint32_t pitch) {
    const uint32_t bytes = count * sizeof(T), padded = round_up(bytes, kBlock);
    const uint32_t gap = static_cast<uint32_t>((stride - count) * sizeof(T));
    DataCopyExtParams copy{static_cast<uint16_t>(rows), bytes, gap,
                           (pitch * static_cast<uint32_t>(sizeof(T)) - padded) / kBlock, 0};
    DataCopyPadExtParams<T> pad{padded != bytes, 0, static_cast<uint8_t>((padded - bytes) / sizeof(T)), T{}};
    DataCopyPad(dst, src, copy, pad);
}

/// The reverse: exactly `count` elements of each row are written.
template <class T>
__aicore__ inline void store_rows(const GlobalTensor<T>& dst, const LocalTensor<T>& src, uint32_t rows,
                                  uint32_t count, int64_t stride, uint32_t pitch) {
    const uint32_t bytes = count * sizeof(T), padded = round_up(bytes, kBlock);
    const uint32_t gap = static_cast<uint32_t>((stride - count) * sizeof(T));
    DataCopyExtParams copy{static_cast<uint16_t>(rows), bytes,
                           (pitch * static_cast<uint32_t>(sizeof(T)) - padded) / kBlock, gap, 0};
    DataCopyPad(dst, src, copy);
}

/// The contiguous part of `total` items that falls to `index` of `count` workers.
struct Share {
    int64_t begin, end;
};
__aicore__ inline Share share(int64_t total, int64_t index, int64_t count) {
    const int64_t each = total / count, rest = total % count;
    const int64_t begin = index * each + least(index, rest);
    return {begin, begin + each + (index < rest ? 1 : 0)};
}

}  // namespace mmx::ascend
