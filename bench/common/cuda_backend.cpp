#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "bench/common/bench.h"
#include "cuda/common/check.h"
#include "cuda/kernels/launchers.h"

namespace mmx::bench {

namespace {

/// Ceilings measured on real devices: a large copy, and 8192^3 matrix products through cuBLAS.
struct DevicePeaks {
    const char* name;
    Peaks peaks;
};
constexpr std::array<DevicePeaks, 1> kDevices = {{
    {"NVIDIA H200", {.copy_gbs = 4275, .f32_gflops = 51e3, .bf16_gflops = 788e3, .fp8_gflops = 1271e3}},
}};

class CudaBackend final : public Backend {
  public:
    CudaBackend() {
#define MMX_BENCH_SET(op, P) ops.op = &cuda::op;
#define MMX_BENCH_SET_WORKSPACE(op, P) ops.op##_workspace = &cuda::op##_workspace;
        MMX_CUDA_OPS(MMX_BENCH_SET)
        MMX_CUDA_WORKSPACE_OPS(MMX_BENCH_SET_WORKSPACE)
        MMX_CUDA_CHECK(cudaStreamCreateWithFlags(&cuda_stream_, cudaStreamNonBlocking));
        stream = cuda_stream_;
        MMX_CUDA_CHECK(cudaEventCreate(&start_));
        MMX_CUDA_CHECK(cudaEventCreate(&stop_));
        MMX_CUDA_CHECK(cudaMalloc(&flush_, kFlushBytes));
    }
    ~CudaBackend() override {
        cudaFree(flush_);
        cudaEventDestroy(start_);
        cudaEventDestroy(stop_);
        cudaStreamDestroy(cuda_stream_);
    }

    std::string device_name() const override {
        cudaDeviceProp properties{};
        MMX_CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
        return properties.name;
    }
    void* allocate(int64_t bytes) override {
        void* data = nullptr;
        MMX_CUDA_CHECK(cudaMalloc(&data, std::max<int64_t>(bytes, 1)));
        MMX_CUDA_CHECK(cudaMemsetAsync(data, 0x7F, bytes, cuda_stream_));
        return data;
    }
    void release(void* data) override { MMX_CUDA_CHECK(cudaFree(data)); }
    void to_device(void* dst, const void* src, int64_t bytes) override {
        MMX_CUDA_CHECK(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, cuda_stream_));
        MMX_CUDA_CHECK(cudaStreamSynchronize(cuda_stream_));
    }
    void to_host(void* dst, const void* src, int64_t bytes) override {
        MMX_CUDA_CHECK(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, cuda_stream_));
        MMX_CUDA_CHECK(cudaStreamSynchronize(cuda_stream_));
    }
    void copy(void* dst, const void* src, int64_t bytes) override {
        MMX_CUDA_CHECK(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, cuda_stream_));
    }

    /// Warm: replays of a graph that holds several calls, so that launch gaps stay out. Cold: one call
    /// between events after the L2 was overwritten.
    double time_us(const std::function<void()>& f, bool cold) override {
        f();
        MMX_CUDA_CHECK(cudaStreamSynchronize(cuda_stream_));
        const double first = between_events([&] { f(); });
        std::vector<double> times;
        if (cold) {
            // Why no longer: a chip at its power limit slows down with time, and torch's timer takes 85 ms.
            const int repeats = static_cast<int>(std::clamp(6e4 / first, 10.0, 100.0));
            for (int i = 0; i < repeats; ++i) {
                MMX_CUDA_CHECK(cudaMemsetAsync(flush_, i, kFlushBytes, cuda_stream_));
                times.push_back(between_events(f));
            }
        } else {
            // Why so many: the start of a replay takes 10 us.
            const int calls = static_cast<int>(std::clamp(5e3 / first, 1.0, 500.0));
            cudaGraph_t graph = nullptr;
            cudaGraphExec_t replay = nullptr;
            MMX_CUDA_CHECK(cudaStreamBeginCapture(cuda_stream_, cudaStreamCaptureModeThreadLocal));
            for (int i = 0; i < calls; ++i) f();
            MMX_CUDA_CHECK(cudaStreamEndCapture(cuda_stream_, &graph));
            MMX_CUDA_CHECK(cudaGraphInstantiate(&replay, graph, 0));
            const auto launch = [&] { MMX_CUDA_CHECK(cudaGraphLaunch(replay, cuda_stream_)); };
            for (int i = 0; i < 3; ++i) between_events(launch);
            const int repeats = static_cast<int>(std::clamp(1e5 / (first * calls), 10.0, 50.0));
            for (int i = 0; i < repeats; ++i) times.push_back(between_events(launch) / calls);
            MMX_CUDA_CHECK(cudaGraphExecDestroy(replay));
            MMX_CUDA_CHECK(cudaGraphDestroy(graph));
        }
        std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
        return times[times.size() / 2];
    }

    Peaks peaks() override {
        const std::string name = device_name();
        for (const DevicePeaks& device : kDevices)
            if (name == device.name) return device.peaks;
        fail("no measured peaks for ", name, "; add a row to kDevices in bench/common/cuda_backend.cpp");
    }

  private:
    double between_events(const std::function<void()>& f) {
        MMX_CUDA_CHECK(cudaEventRecord(start_, cuda_stream_));
        f();
        MMX_CUDA_CHECK(cudaEventRecord(stop_, cuda_stream_));
        MMX_CUDA_CHECK(cudaEventSynchronize(stop_));
        float ms = 0;
        MMX_CUDA_CHECK(cudaEventElapsedTime(&ms, start_, stop_));
        return 1e3 * static_cast<double>(ms);
    }

    static constexpr int64_t kFlushBytes = 256 << 20;  // four times the L2 of an H200
    cudaStream_t cuda_stream_ = nullptr;
    cudaEvent_t start_ = nullptr, stop_ = nullptr;
    void* flush_ = nullptr;
};

}  // namespace

Backend* make_cuda_backend() { return new CudaBackend; }

}  // namespace mmx::bench
