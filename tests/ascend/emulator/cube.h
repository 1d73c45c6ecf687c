#pragma once

#include "tests/ascend/emulator/sort.h"

namespace AscendC {

struct LoadData2DParams {
    uint16_t startIndex = 0;
    uint8_t repeatTimes = 0;
    uint16_t srcStride = 0;
    uint8_t sid = 0;
    uint16_t dstGap = 0;
    bool ifTranspose = false;
    uint8_t addrMode = 0;
};
struct MmadParams {
    uint16_t m = 0, n = 0, k = 0;
    uint8_t unitFlag = 0;
    bool cmatrixSource = false, cmatrixInitVal = true;
};
struct FixpipeParamsV220 {
    uint16_t nSize = 0, mSize = 0, srcStride = 0;
    uint32_t dstStride = 0;
    QuantMode_t quantPre = QuantMode_t::NoQuant;
    uint64_t deqScalar = 0;
    uint16_t ndNum = 1, srcNdStride = 0, dstNdStride = 0;
    bool reluEn = false;
    uint8_t unitFlag = 0;
};
struct FixpipeConfig {
    bool row_major;
};
constexpr FixpipeConfig CFG_ROW_MAJOR{true}, CFG_NZ{false};

/// Moves fractals of 512 B from L1 to L0A or L0B; strides in fractals. Transposing swaps rows and columns of
/// each 16x16 fractal of 16-bit elements.
template <class T>
void LoadData(const LocalTensor<T>& d, const LocalTensor<T>& s, const LoadData2DParams& p,
              emu::At at = emu::At::current()) {
    const bool to_a = &d.memory() == &emu::core->l0a, to_b = &d.memory() == &emu::core->l0b;
    emu::require((to_a || to_b) && &s.memory() == &emu::core->l1, 1, at,
                 "LoadData leads from L1 to L0A or L0B");
    emu::require(p.repeatTimes >= 1, 5, at, "LoadData: repeatTimes must be positive");
    emu::require(!p.ifTranspose || sizeof(T) == 2, 1, at, "LoadData transposes 16-bit elements only");
    const bool several = p.repeatTimes > 1;
    const size_t src_step = emu::stride(at, "srcStride", p.srcStride, several) * 512;
    const size_t dst_step = 512 + emu::stride(at, "dstGap", p.dstGap, several) * 512;
    emu::Instruction op(PIPE_MTE1, "LoadData", at);
    d.aligned(512, "LoadData", at);
    s.aligned(32, "LoadData", at);
    for (size_t r = 0; r < p.repeatTimes; ++r) {
        const size_t from = p.startIndex * 512 + r * src_step, to = r * dst_step;
        s.check(from, 512, "LoadData", at);
        d.check(to, 512, "LoadData", at);
        if (emu::machine->dry) continue;
        op.read(s.memory(), s.offset() + from, 512);
        op.write(d.memory(), d.offset() + to, 512);
        if (!p.ifTranspose) {
            std::memcpy(d.at_byte(to), s.at_byte(from), 512);
            continue;
        }
        for (size_t i = 0; i < 16; ++i)
            for (size_t j = 0; j < 16; ++j)
                *d.at_byte(to + (i * 16 + j) * sizeof(T)) = *s.at_byte(from + (j * 16 + i) * sizeof(T));
    }
    const double rate = to_a ? emu::Chip::kL0aLoad : emu::Chip::kL0bLoad;
    op.done(p.repeatTimes * 512 / rate, emu::Chip::kStartCube, p.repeatTimes);
}

/// C[m, n] (+)= A[m, k] . B: A as 16-row stripes of fractals along k, B as 16-row groups of k of fractals
/// along n with n in rows, C as column groups of 16 with rows within.
template <class C, class A, class B>
    requires emu::tables::Multipliable<C, A, B>
void Mmad(const LocalTensor<C>& c, const LocalTensor<A>& a, const LocalTensor<B>& b, const MmadParams& p,
          emu::At at = emu::At::current()) {
    emu::require(
        &c.memory() == &emu::core->l0c && &a.memory() == &emu::core->l0a && &b.memory() == &emu::core->l0b, 1,
        at, "Mmad takes L0C, L0A and L0B");
    emu::require(p.m >= 1 && p.m <= 4095 && p.n >= 1 && p.n <= 4095 && p.k >= 1 && p.k <= 4095, 5, at,
                 "Mmad: m ", p.m, " n ", p.n, " k ", p.k, " must be 1 to 4095");
    emu::require(p.m != 1, 15, at,
                 "Mmad with m = 1 is a vector product that reads A as a plain row; pad m to 16");
    emu::require(p.unitFlag == 0 || p.unitFlag == 2 || p.unitFlag == 3, 15, at,
                 "Mmad: unitFlag must be 0, 2 or 3");
    constexpr size_t k0 = 32 / sizeof(A);
    const size_t m1 = (p.m + 15) / 16, n1 = (p.n + 15) / 16, k1 = (p.k + k0 - 1) / k0;
    emu::Instruction op(PIPE_M, "Mmad", at);
    op.self_ordered = m1 * n1 >= 10;
    op.unit_flag = p.unitFlag != 0;
    c.aligned(1024, "Mmad", at);
    a.aligned(512, "Mmad", at);
    b.aligned(512, "Mmad", at);
    c.check(0, m1 * n1 * 256 * sizeof(C), "Mmad", at);
    a.check(0, m1 * k1 * 512, "Mmad", at);
    b.check(0, n1 * k1 * 512, "Mmad", at);
    if (!emu::machine->dry) {
        op.read(a.memory(), a.offset(), m1 * k1 * 512);
        op.read(b.memory(), b.offset(), n1 * k1 * 512);
        if (!p.cmatrixInitVal) op.read(c.memory(), c.offset(), m1 * n1 * 256 * sizeof(C));
        op.write(c.memory(), c.offset(), m1 * n1 * 256 * sizeof(C));
        using Sum = std::conditional_t<std::is_same_v<C, float>, float, int32_t>;
        std::vector<Sum> right(k1 * k0 * n1 * 16);
        for (size_t kk = 0; kk < k1 * k0; ++kk)
            for (size_t n = 0; n < n1 * 16; ++n)
                right[kk * n1 * 16 + n] =
                    kk < p.k ? static_cast<Sum>(
                                   b.at_index(((kk / k0) * n1 + n / 16) * 16 * k0 + n % 16 * k0 + kk % k0))
                             : Sum(0);
        std::vector<Sum> row(n1 * 16);
        for (size_t m = 0; m < m1 * 16; ++m) {
            for (size_t n = 0; n < n1 * 16; ++n)
                row[n] = p.cmatrixInitVal ? Sum(0) : c.at_index((n / 16 * m1 * 16 + m) * 16 + n % 16);
            for (size_t kk = 0; kk < p.k; ++kk) {
                const auto left =
                    static_cast<Sum>(a.at_index(((m / 16) * k1 + kk / k0) * 16 * k0 + m % 16 * k0 + kk % k0));
                const Sum* r = &right[kk * n1 * 16];
                for (size_t n = 0; n < n1 * 16; ++n) row[n] += left * r[n];
            }
            for (size_t n = 0; n < n1 * 16; ++n) c.at_index((n / 16 * m1 * 16 + m) * 16 + n % 16) = row[n];
        }
    }
    const double per_cycle = sizeof(A) == 4 ? 4 : k0;
    op.done(m1 * n1 * std::ceil(p.k / per_cycle), emu::Chip::kStartCube);
}

/// An accumulator tile to row-major global memory, rounded on the way.
template <class Out, class Acc, FixpipeConfig config = CFG_ROW_MAJOR>
    requires emu::tables::Fixable<Out, Acc>
void Fixpipe(const GlobalTensor<Out>& d, const LocalTensor<Acc>& s, const FixpipeParamsV220& p,
             emu::At at = emu::At::current()) {
    static_assert(config.row_major, "only row-major output to global memory is used");
    emu::require(p.nSize >= 1 && p.nSize <= 4095 && p.mSize >= 1 && p.mSize <= 8192, 5, at, "Fixpipe: nSize ",
                 p.nSize, " mSize ", p.mSize);
    emu::require(p.nSize % 16 == 0, 16, at, "Fixpipe: nSize ", p.nSize, " must be a multiple of 16");
    const size_t src_stride = emu::stride(at, "srcStride", p.srcStride, p.nSize > 16);
    emu::require(src_stride == (p.mSize + 15u) / 16 * 16, 16, at, "Fixpipe: srcStride ", src_stride,
                 " must be ", (p.mSize + 15u) / 16 * 16);
    const QuantMode_t expected = std::is_same_v<Out, Acc>          ? QuantMode_t::NoQuant
                                 : std::is_same_v<Out, bfloat16_t> ? QuantMode_t::F322BF16
                                                                   : QuantMode_t::F322F16;
    emu::require(p.quantPre == expected, 16, at, "Fixpipe: quantPre does not fit the types");
    emu::require(p.ndNum == 1, 5, at, "Fixpipe: one matrix per copy is used here");
    const size_t dst_stride = emu::stride(at, "dstStride", p.dstStride, p.mSize > 1);
    emu::Instruction op(PIPE_FIX, "Fixpipe", at);
    op.unit_flag = p.unitFlag != 0;
    s.aligned(64, "Fixpipe", at);
    const size_t row = p.nSize * sizeof(Out);
    for (size_t g = 0; g < p.nSize / 16u; ++g) {
        s.check(g * src_stride * 16 * sizeof(Acc), p.mSize * 16 * sizeof(Acc), "Fixpipe", at);
        if (!emu::machine->dry)
            op.read(s.memory(), s.offset() + g * src_stride * 16 * sizeof(Acc), p.mSize * 16 * sizeof(Acc));
    }
    for (size_t m = 0; m < p.mSize; ++m) {
        d.check(m * dst_stride * sizeof(Out), row, "Fixpipe", at);
        op.write_gm(d.at_byte(m * dst_stride * sizeof(Out)), row);
        if (emu::machine->dry) continue;
        Out* to = reinterpret_cast<Out*>(d.at_byte(m * dst_stride * sizeof(Out)));
        for (size_t n = 0; n < p.nSize; ++n) {
            Acc x = s.at_index((n / 16 * src_stride + m) * 16 + n % 16);
            if (p.reluEn) x = std::max(x, Acc(0));
            to[n] = static_cast<Out>(x);
        }
    }
    op.done(p.mSize * row / emu::Chip::kL2Write, emu::Chip::kStartCopy, p.mSize);
}

}  // namespace AscendC
