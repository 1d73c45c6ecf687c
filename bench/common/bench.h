#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "cpp/core/ops.h"

/// Microbenchmarks of the torch-free launchers. A bench file registers one function per op with MMX_BENCH; it
/// reads its shapes from tests/cases/<family>.csv (rows with use = bench or both; with --large those with use
/// = large), fills Params and calls run().
namespace mmx::bench {

/// Dimensions of one csv row.
struct Case {
    std::map<std::string, int64_t> dims;
    int64_t operator[](const std::string& dim) const;
    bool has(const std::string& dim) const { return dims.contains(dim); }
};

/// The launchers a backend has; null where it has no kernel.
struct Launchers {
#define MMX_BENCH_FIELD(op, P) void (*op)(const P&, Stream) = nullptr;
#define MMX_BENCH_WORKSPACE_FIELD(op, P) int64_t (*op##_workspace)(const P&) = nullptr;
    MMX_OPS(MMX_BENCH_FIELD)
    MMX_WORKSPACE_OPS(MMX_BENCH_WORKSPACE_FIELD)
#undef MMX_BENCH_FIELD
#undef MMX_BENCH_WORKSPACE_FIELD
};

/// Ceilings of the machine, measured or from the table of measured devices (see peaks in the backend files).
struct Peaks {
    double copy_gbs = 0;     // read plus written bytes of a large copy
    double f32_gflops = 0;   // fused multiply-adds count as two
    double bf16_gflops = 0;  // of bf16 inputs with fp32 accumulation
    double fp8_gflops = 0;
};

/// Memory, clock and launchers of one kind of device.
class Backend {
  public:
    virtual ~Backend() = default;
    virtual std::string device_name() const = 0;
    virtual void* allocate(int64_t bytes) = 0;
    virtual void release(void* data) = 0;
    virtual void to_device(void* dst, const void* src, int64_t bytes) = 0;
    virtual void to_host(void* dst, const void* src, int64_t bytes) = 0;
    virtual void copy(void* dst, const void* src, int64_t bytes) = 0;  // on the stream, as a baseline
    /// Median microseconds of one call of `f`; with `cold`, caches are flushed before each call.
    virtual double time_us(const std::function<void()>& f, bool cold) = 0;
    virtual Peaks peaks() = 0;

    Launchers ops;
    Stream stream = nullptr;
};

Backend* make_cpu_backend(int num_threads);
Backend* make_cuda_backend();

/// Device memory of one tensor.
class Buffer {
  public:
    Buffer(Backend& backend, int64_t bytes)
        : backend_(&backend), bytes_(bytes), data_(backend.allocate(bytes)) {}
    ~Buffer() {
        if (data_) backend_->release(data_);
    }
    Buffer(Buffer&& other) noexcept : backend_(other.backend_), bytes_(other.bytes_), data_(other.data_) {
        other.data_ = nullptr;
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    Buffer& operator=(Buffer&&) = delete;

    template <class T = void>
    T* as() const {
        return static_cast<T*>(data_);
    }
    int64_t bytes() const { return bytes_; }

  private:
    Backend* backend_;
    int64_t bytes_;
    void* data_;
};

/// What a launch must at least move and compute, for the share of peak; and what to compare it with.
struct Work {
    double bytes = 0;
    double flops = 0;
    DType math = DType::kF32;     // whose peak bounds the flops
    const Buffer* out = nullptr;  // hashed after the run
    std::string baseline = {};    // name of the comparison
    std::function<void()> baseline_run = {};
};

/// What to time and how to tell.
struct Options {
    bool cold = false, json = false, large = false;
    uint64_t seed = 0;  // other numbers in other places
    std::string cases = MMX_CASES_DIR;
    std::map<std::string, std::set<int64_t>> only;  // of cases with one of these dimensions, the named ones
};

class Bench {
  public:
    Bench(Backend& backend, std::string backend_name, Options options);

    /// Rows of tests/cases/<family>.csv for `op` that are used by benches; either the large ones or the
    /// others.
    std::vector<Case> cases(const std::string& family, const std::string& op) const;
    /// Types of activations; large cases leave f32 out, whose kernels would take seconds.
    std::vector<DType> dtypes() const;

    Buffer empty(DType dtype, int64_t count) { return {backend_, count * dtype_bytes(dtype)}; }
    /// Normal numbers with mean 0 and deviation `scale`.
    Buffer randn(DType dtype, int64_t count, float scale = 1.0f);
    template <class T>
    Buffer upload(const std::vector<T>& values) {
        Buffer buffer(backend_, static_cast<int64_t>(values.size() * sizeof(T)));
        backend_.to_device(buffer.as(), values.data(), buffer.bytes());
        return buffer;
    }

    /// Times the launcher and prints one line (or one JSON object).
    template <class P>
    void run(const char* op, const Case& c, DType dtype, const Work& work, void (*launch)(const P&, Stream),
             const P& p) {
        report(op, c, dtype, work, [&] { launch(p, backend_.stream); });
    }

    Backend& backend() { return backend_; }
    const Launchers& ops() const { return backend_.ops; }

  private:
    void report(const char* op, const Case& c, DType dtype, const Work& work,
                const std::function<void()>& launch);
    uint64_t hash(const Buffer& buffer);

    Backend& backend_;
    std::string backend_name_;
    Options options_;
    Peaks peaks_;
    uint64_t seed_;  // of the next tensor
    // Not used. Why: where the small tensors behind it lie decides some percent of a call of few
    // microseconds.
    Buffer place_;
};

using BenchFunction = void (*)(Bench&);

struct Registration {
    Registration(const char* op, BenchFunction function);
};

/// Defines and registers the benchmark of one op; skipped on backends that lack a kernel for it.
#define MMX_BENCH(op)                                                        \
    static void bench_##op(::mmx::bench::Bench& b);                          \
    static const ::mmx::bench::Registration register_##op(#op, [](auto& b) { \
        if (b.ops().op) bench_##op(b);                                       \
    });                                                                      \
    static void bench_##op(::mmx::bench::Bench& b)

}  // namespace mmx::bench
