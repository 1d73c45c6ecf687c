#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>

// Compiled with -march=native: the ceiling of this very machine.
namespace mmx::bench {

double measure_fma_gflops();
double measure_bf16_gflops();

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));

/// fp32 fused multiply-adds per second on all OpenMP threads, in GFLOP/s (two per FMA): 12 independent chains
/// of full vectors, enough to hide a latency of 4 cycles on 2 units.
double measure_fma_gflops() {
    constexpr int kChains = 12;
    constexpr int64_t kSteps = 4'000'000;
    double best = 0;
    for (int repeat = 0; repeat < 3; ++repeat) {
        const auto start = std::chrono::steady_clock::now();
        double sink = 0;
#pragma omp parallel reduction(+ : sink)
        {
            Vec acc[kChains], a, b;
            for (int l = 0; l < kLanes; ++l) {
                a[l] = 0.999f;
                b[l] = 1e-3f * static_cast<float>(l);
                for (auto& v : acc) v[l] = static_cast<float>(l);
            }
            for (int64_t i = 0; i < kSteps; ++i)
                for (auto& v : acc) v = v * a + b;
            for (const auto& v : acc) sink += v[0];
        }
        const double seconds =
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        const double flops = 2.0 * kLanes * kChains * static_cast<double>(kSteps) * omp_get_max_threads();
        // Why use the sink: the loops must not be optimised away.
        best = std::max(best, flops / seconds * 1e-9 + (sink == 0.12345 ? 1 : 0));
    }
    return best;
}

/// bf16 products summed in fp32 per second on all OpenMP threads, in GFLOP/s: four chains of tile
/// instructions where the processor has them and the system permits, otherwise fp32 multiply-adds, which is
/// how they are done.
double measure_bf16_gflops() {
#if defined(__AMX_BF16__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0) {
        constexpr int64_t kSteps = 2'000'000;
        constexpr double kFlops = 4 * 2.0 * 16 * 16 * 32;
        double best = 0;
        for (int repeat = 0; repeat < 3; ++repeat) {
            const auto start = std::chrono::steady_clock::now();
#pragma omp parallel
            {
                struct alignas(64) {
                    uint8_t palette = 1, reserved[15] = {};
                    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
                    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
                } config;
                asm volatile("ldtilecfg %0" ::"m"(config));
                for (int64_t i = 0; i < kSteps; ++i)
                    asm volatile(
                        "tdpbf16ps %tmm4, %tmm5, %tmm0\n"
                        "tdpbf16ps %tmm4, %tmm6, %tmm1\n"
                        "tdpbf16ps %tmm7, %tmm5, %tmm2\n"
                        "tdpbf16ps %tmm7, %tmm6, %tmm3\n");
                asm volatile("tilerelease");
            }
            const double seconds =
                std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
            best = std::max(best, kFlops * kSteps * omp_get_max_threads() / seconds * 1e-9);
        }
        return best;
    }
#endif
    return measure_fma_gflops();
}

}  // namespace mmx::bench
