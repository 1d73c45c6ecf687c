#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

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
        MMX_CUDA_CHECK(cudaMalloc(&flush_, kFlushBytes));
    }
    ~CudaBackend() override {
        cudaFree(flush_);
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
            // As torch's timer does it: 25 ms without, 60 ms with a flush before each call, and no pause.
            // Why, and why a rest before: at its power limit a chip slows down within that time, and recovers
            // while it waits for the host.
            std::this_thread::sleep_for(std::chrono::milliseconds(300));
            for (int i = static_cast<int>(2.5e4 / first); i > 0; --i) f();
            const auto repeats = static_cast<size_t>(std::clamp(6e4 / first, 10.0, 100.0));
            std::vector<std::pair<Event, Event>> bounds(repeats);
            for (auto& [start, stop] : bounds) {
                MMX_CUDA_CHECK(cudaMemsetAsync(flush_, 0, kFlushBytes, cuda_stream_));
                MMX_CUDA_CHECK(cudaEventRecord(start.event, cuda_stream_));
                f();
                MMX_CUDA_CHECK(cudaEventRecord(stop.event, cuda_stream_));
            }
            for (const auto& [start, stop] : bounds) times.push_back(us_between(start.event, stop.event));
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
    struct Event {
        cudaEvent_t event = nullptr;
        Event() { MMX_CUDA_CHECK(cudaEventCreate(&event)); }
        ~Event() { cudaEventDestroy(event); }
        Event(const Event&) = delete;
        Event& operator=(const Event&) = delete;
    };

    static double us_between(cudaEvent_t start, cudaEvent_t stop) {
        MMX_CUDA_CHECK(cudaEventSynchronize(stop));
        float ms = 0;
        MMX_CUDA_CHECK(cudaEventElapsedTime(&ms, start, stop));
        return 1e3 * static_cast<double>(ms);
    }

    double between_events(const std::function<void()>& f) {
        MMX_CUDA_CHECK(cudaEventRecord(start_.event, cuda_stream_));
        f();
        MMX_CUDA_CHECK(cudaEventRecord(stop_.event, cuda_stream_));
        return us_between(start_.event, stop_.event);
    }

    static constexpr int64_t kFlushBytes = 256 << 20;  // four times the L2 of an H200
    cudaStream_t cuda_stream_ = nullptr;
    Event start_, stop_;
    void* flush_ = nullptr;
};

}  // namespace

Backend* make_cuda_backend() { return new CudaBackend; }

}  // namespace mmx::bench
