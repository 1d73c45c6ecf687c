#pragma once

#include <cstdint>

#include "cuda/common/ptx/wgmma.cuh"

/// Tensor core products of a warpgroup, 64 rows x kN columns for every kN that is a multiple of 8, both
/// operands in shared memory with k contiguous (`wgmma_operand`), fp32 sums laid out as in wgmma.cuh. The sum
/// of an element does not depend on kN.
namespace mmx::cuda::ptx {

/// d = a . b^T (+ d if accumulate): bf16 and f16 over k16, e4m3 over k32 (a row of 128 bytes holds 128
/// elements). Only the first kN / 2 registers of d take part.
template <int kN>
struct Wgmma;

// The first kN / 2 registers of d, as asm text and as operands.
#define MMX_TEXT_8 "%0, %1, %2, %3"
#define MMX_TEXT_16 MMX_TEXT_8 ", %4, %5, %6, %7"
#define MMX_TEXT_24 MMX_TEXT_16 ", %8, %9, %10, %11"
#define MMX_TEXT_32 MMX_TEXT_24 ", %12, %13, %14, %15"
#define MMX_TEXT_40 MMX_TEXT_32 ", %16, %17, %18, %19"
#define MMX_TEXT_48 MMX_TEXT_40 ", %20, %21, %22, %23"
#define MMX_TEXT_56 MMX_TEXT_48 ", %24, %25, %26, %27"
#define MMX_TEXT_64 MMX_TEXT_56 ", %28, %29, %30, %31"
#define MMX_TEXT_72 MMX_TEXT_64 ", %32, %33, %34, %35"
#define MMX_TEXT_80 MMX_TEXT_72 ", %36, %37, %38, %39"
#define MMX_TEXT_88 MMX_TEXT_80 ", %40, %41, %42, %43"
#define MMX_TEXT_96 MMX_TEXT_88 ", %44, %45, %46, %47"
#define MMX_TEXT_104 MMX_TEXT_96 ", %48, %49, %50, %51"
#define MMX_TEXT_112 MMX_TEXT_104 ", %52, %53, %54, %55"
#define MMX_TEXT_120 MMX_TEXT_112 ", %56, %57, %58, %59"
#define MMX_TEXT_128 MMX_TEXT_120 ", %60, %61, %62, %63"
#define MMX_TEXT_136 MMX_TEXT_128 ", %64, %65, %66, %67"
#define MMX_TEXT_144 MMX_TEXT_136 ", %68, %69, %70, %71"
#define MMX_TEXT_152 MMX_TEXT_144 ", %72, %73, %74, %75"
#define MMX_TEXT_160 MMX_TEXT_152 ", %76, %77, %78, %79"
#define MMX_OPERANDS_8 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define MMX_OPERANDS_16 MMX_OPERANDS_8, "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define MMX_OPERANDS_24 MMX_OPERANDS_16, "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11])
#define MMX_OPERANDS_32 MMX_OPERANDS_24, "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define MMX_OPERANDS_40 MMX_OPERANDS_32, "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19])
#define MMX_OPERANDS_48 MMX_OPERANDS_40, "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
#define MMX_OPERANDS_56 MMX_OPERANDS_48, "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27])
#define MMX_OPERANDS_64 MMX_OPERANDS_56, "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define MMX_OPERANDS_72 MMX_OPERANDS_64, "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35])
#define MMX_OPERANDS_80 MMX_OPERANDS_72, "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
#define MMX_OPERANDS_88 MMX_OPERANDS_80, "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43])
#define MMX_OPERANDS_96 MMX_OPERANDS_88, "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#define MMX_OPERANDS_104 MMX_OPERANDS_96, "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51])
#define MMX_OPERANDS_112 MMX_OPERANDS_104, "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55])
#define MMX_OPERANDS_120 MMX_OPERANDS_112, "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59])
#define MMX_OPERANDS_128 MMX_OPERANDS_120, "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define MMX_OPERANDS_136 MMX_OPERANDS_128, "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67])
#define MMX_OPERANDS_144 MMX_OPERANDS_136, "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71])
#define MMX_OPERANDS_152 MMX_OPERANDS_144, "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75])
#define MMX_OPERANDS_160 MMX_OPERANDS_152, "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])

// One product over STEP of k; both operands are of TYPE. Only 16-bit types can be transposed.
#define MMX_PRODUCT(NAME, N, A, B, P, STEP, TYPE, TRANSPOSED)                                            \
    template <int kSize>                                                                                 \
    static __device__ __forceinline__ void NAME(float (&d)[kSize], uint64_t a, uint64_t b,               \
                                                bool accumulate) {                                       \
        static_assert(kSize >= N / 2);                                                                   \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P                                             \
                     ", 0;\n"                                                                            \
                     "wgmma.mma_async.sync.aligned.m64n" #N STEP ".f32." TYPE "." TYPE " {" MMX_TEXT_##N \
                     "}, %" #A ", %" #B ", p, 1, 1" TRANSPOSED ";\n}"                                    \
                     : MMX_OPERANDS_##N                                                                  \
                     : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));                               \
    }

#define MMX_WGMMA(N, A, B, P)                                  \
    template <>                                                \
    struct Wgmma<N> {                                          \
        MMX_PRODUCT(bf16, N, A, B, P, "k16", "bf16", ", 0, 0") \
        MMX_PRODUCT(f16, N, A, B, P, "k16", "f16", ", 0, 0")   \
        MMX_PRODUCT(e4m3, N, A, B, P, "k32", "e4m3", "")       \
    }

// N and the operand numbers of a, b and accumulate behind N / 2 registers.
MMX_WGMMA(8, 4, 5, 6);
MMX_WGMMA(16, 8, 9, 10);
MMX_WGMMA(24, 12, 13, 14);
MMX_WGMMA(32, 16, 17, 18);
MMX_WGMMA(40, 20, 21, 22);
MMX_WGMMA(48, 24, 25, 26);
MMX_WGMMA(56, 28, 29, 30);
MMX_WGMMA(64, 32, 33, 34);
MMX_WGMMA(72, 36, 37, 38);
MMX_WGMMA(80, 40, 41, 42);
MMX_WGMMA(88, 44, 45, 46);
MMX_WGMMA(96, 48, 49, 50);
MMX_WGMMA(104, 52, 53, 54);
MMX_WGMMA(112, 56, 57, 58);
MMX_WGMMA(120, 60, 61, 62);
MMX_WGMMA(128, 64, 65, 66);
MMX_WGMMA(136, 68, 69, 70);
MMX_WGMMA(144, 72, 73, 74);
MMX_WGMMA(152, 76, 77, 78);
MMX_WGMMA(160, 80, 81, 82);

// One product over k16 of 128 columns: a from registers, b [k, n] with n contiguous.
#define MMX_TRANSPOSED(TYPE)                                                                          \
    __device__ __forceinline__ void wgmma_transposed_##TYPE(float (&d)[64], const uint32_t (&a)[4],   \
                                                            uint64_t b, bool accumulate) {            \
        asm volatile(                                                                                 \
            "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"                                              \
            "wgmma.mma_async.sync.aligned.m64n128k16.f32." #TYPE "." #TYPE " {" MMX_TEXT_128          \
            "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}"                                            \
            : MMX_OPERANDS_128                                                                        \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate))); \
    }

/// d = a . b (+ d if accumulate) over k16, 64 rows x 128 columns.
MMX_TRANSPOSED(bf16)
MMX_TRANSPOSED(f16)

#undef MMX_TRANSPOSED
#undef MMX_WGMMA
#undef MMX_PRODUCT
#undef MMX_TEXT_8
#undef MMX_TEXT_16
#undef MMX_TEXT_24
#undef MMX_TEXT_32
#undef MMX_TEXT_40
#undef MMX_TEXT_48
#undef MMX_TEXT_56
#undef MMX_TEXT_64
#undef MMX_TEXT_72
#undef MMX_TEXT_80
#undef MMX_TEXT_88
#undef MMX_TEXT_96
#undef MMX_TEXT_104
#undef MMX_TEXT_112
#undef MMX_TEXT_120
#undef MMX_TEXT_128
#undef MMX_TEXT_136
#undef MMX_TEXT_144
#undef MMX_TEXT_152
#undef MMX_TEXT_160
#undef MMX_OPERANDS_8
#undef MMX_OPERANDS_16
#undef MMX_OPERANDS_24
#undef MMX_OPERANDS_32
#undef MMX_OPERANDS_40
#undef MMX_OPERANDS_48
#undef MMX_OPERANDS_56
#undef MMX_OPERANDS_64
#undef MMX_OPERANDS_72
#undef MMX_OPERANDS_80
#undef MMX_OPERANDS_88
#undef MMX_OPERANDS_96
#undef MMX_OPERANDS_104
#undef MMX_OPERANDS_112
#undef MMX_OPERANDS_120
#undef MMX_OPERANDS_128
#undef MMX_OPERANDS_136
#undef MMX_OPERANDS_144
#undef MMX_OPERANDS_152
#undef MMX_OPERANDS_160

/// f.template operator()<kN>() for kN = n, a multiple of 8 from 8 to kMax.
template <int kMax, int kN = 8, class F>
__device__ __forceinline__ void dispatch_columns(int n, F&& f) {
    if constexpr (kN < kMax) {
        if (n > kN) return dispatch_columns<kMax, kN + 8>(n, f);
    }
    f.template operator()<kN>();
}

}  // namespace mmx::cuda::ptx
