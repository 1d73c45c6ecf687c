#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdint>

// Compiled with -march=native: the ceiling of this very machine.
namespace mmx::bench {

double measure_fma_gflops();

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

}  // namespace mmx::bench
