#pragma once

#include <cstdint>

/// Tensor core products of a warpgroup, 64 rows x 128 columns, bf16 to fp32. Warp w of the group owns rows
/// 16w to 16w + 15; d[4j + 0, 1] are columns 8j + 2t, + 1 of row g and d[4j + 2, 3] the same of row g + 8 (g
/// = lane / 4, t = lane % 4), which is also how the A operand of a k16 step lies in registers.
namespace mmx::cuda::ptx {

/// Shared-memory operand with the 128-byte swizzle of the copy engine: rows of 64 elements (128 bytes),
/// groups of 8 rows 1024 bytes apart, 1024-byte aligned. `repeat_bytes` is the distance to the next 64
/// elements of the dimension that is contiguous, used only by transposed operands; others step by 32 bytes
/// per k16 themselves.
__device__ __forceinline__ uint64_t wgmma_operand(uint32_t smem_address, uint32_t repeat_bytes = 16) {
    return static_cast<uint64_t>((smem_address & 0x3FFFF) >> 4) |
           static_cast<uint64_t>(repeat_bytes >> 4) << 16 | static_cast<uint64_t>(1024 >> 4) << 32 |
           1ull << 62;
}

/// An operand whose address is the same in all lanes. Why the shuffle: it tells the compiler so, and each
/// step is one uniform addition instead of 64-bit arithmetic per lane; the products then follow each other
/// closely.
struct UniformOperand {
    uint32_t low;

    __device__ __forceinline__ explicit UniformOperand(uint32_t smem_address, uint32_t repeat_bytes = 16)
        : low(__shfl_sync(0xFFFFFFFFu, static_cast<uint32_t>(wgmma_operand(smem_address, repeat_bytes)), 0)) {
    }
    __device__ __forceinline__ uint64_t operator+(uint32_t bytes) const {
        return static_cast<uint64_t>(1024 >> 4 | 1 << 30) << 32 | (low + (bytes >> 4));
    }
};

__device__ __forceinline__ void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// Waits for all products, but not before `x` >= 0 is known: the assembler moves a wait up past arithmetic
/// that does not need it, here behind a store that never happens.
__device__ __forceinline__ void wgmma_wait_after(float x) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.lt.f32 p, %0, 0f00000000;\n@p st.shared.f32 [%1], %0;\n}\n"
        "wgmma.wait_group.sync.aligned 0;" ::"f"(x),
        "r"(0)
        : "memory");
}

/// After a wait: keeps the compiler from reading or changing an accumulator before that wait.
template <int kSize>
__device__ __forceinline__ void keep_registers(float (&d)[kSize]) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

/// d = a . b^T (+ d if accumulate) over k16; a and b with k contiguous.
__device__ __forceinline__ void wgmma_64x128(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, p, 1, 1, 0, 0;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),
          "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),
          "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),
          "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
          "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]),
          "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]),
          "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),
          "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
        : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));
}

/// d = a . b (+ d if accumulate) over k16; a from registers, b [k, n] with n contiguous.
__device__ __forceinline__ void wgmma_64x128_transposed(float (&d)[64], const uint32_t (&a)[4], uint64_t b,
                                                        bool accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),
          "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),
          "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),
          "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
          "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]),
          "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]),
          "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),
          "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

}  // namespace mmx::cuda::ptx
