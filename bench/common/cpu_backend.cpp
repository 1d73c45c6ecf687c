#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "bench/common/bench.h"
#include "cpp/kernels/launchers.h"

namespace mmx::bench {

double measure_fma_gflops();  // fma_peak.cpp
double measure_bf16_gflops();

namespace {

double now_us() {
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

class CpuBackend final : public Backend {
  public:
    explicit CpuBackend(int num_threads) {
        if (num_threads > 0) omp_set_num_threads(num_threads);
#define MMX_BENCH_SET(op, P) ops.op = &cpu::op;
#define MMX_BENCH_SET_WORKSPACE(op, P) ops.op##_workspace = [](const P&) { return int64_t{0}; };
        MMX_OPS(MMX_BENCH_SET)
        MMX_WORKSPACE_OPS(MMX_BENCH_SET_WORKSPACE)
        const long l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
        flush_.resize(std::clamp<int64_t>(2 * l3, 64 << 20, 512 << 20));
    }

    std::string device_name() const override {
        std::ifstream file("/proc/cpuinfo");
        std::string name = "cpu";
        for (std::string line; std::getline(file, line);)
            if (line.starts_with("model name")) {
                name = line.substr(line.find(':') + 2);
                break;
            }
        return name + ", " + cpu::isa_name() + ", " + std::to_string(omp_get_max_threads()) + " threads";
    }

    void* allocate(int64_t bytes) override {
        void* data = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
        // Why: first touch maps the pages, which must not be part of the first timing.
        std::memset(data, 0x7F, bytes);
        return data;
    }
    void release(void* data) override { std::free(data); }
    void to_device(void* dst, const void* src, int64_t bytes) override { std::memcpy(dst, src, bytes); }
    void to_host(void* dst, const void* src, int64_t bytes) override { std::memcpy(dst, src, bytes); }
    void copy(void* dst, const void* src, int64_t bytes) override {
        const int64_t chunks = omp_get_max_threads();
#pragma omp parallel for schedule(static, 1)
        for (int64_t c = 0; c < chunks; ++c) {
            const int64_t begin = bytes * c / chunks, end = bytes * (c + 1) / chunks;
            std::memcpy(static_cast<char*>(dst) + begin, static_cast<const char*>(src) + begin, end - begin);
        }
    }

    double time_us(const std::function<void()>& f, bool cold) override {
        f();
        std::vector<double> times;
        const double stop = now_us() + 3e5;
        while (times.size() < 5 || (now_us() < stop && times.size() < 1000)) {
            if (cold) std::fill(flush_.begin(), flush_.end(), static_cast<char>(times.size()));
            const double start = now_us();
            f();
            times.push_back(now_us() - start);
        }
        std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
        return times[times.size() / 2];
    }

    Peaks peaks() override {
        const int64_t bytes = 256 << 20;
        Buffer a(*this, bytes), b(*this, bytes);
        const double us = time_us([&] { copy(a.as(), b.as(), bytes); }, false);
        const double gflops = measure_fma_gflops();
        return {.copy_gbs = 2e-3 * bytes / us,
                .f32_gflops = gflops,
                .bf16_gflops = measure_bf16_gflops(),
                .fp8_gflops = gflops};
    }

  private:
    std::vector<char> flush_;
};

}  // namespace

Backend* make_cpu_backend(int num_threads) { return new CpuBackend(num_threads); }

}  // namespace mmx::bench
