#include "bench/common/bench.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <numbers>
#include <sstream>

#include "cpp/core/check.h"

namespace mmx::bench {

namespace {

uint64_t next_random(uint64_t& state) {
    state += 0x9E3779B97F4A7C15ull;
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

float next_normal(uint64_t& state) {
    const double u = (static_cast<double>(next_random(state) >> 11) + 0.5) * 0x1p-53;
    const double v = static_cast<double>(next_random(state) >> 11) * 0x1p-53;
    return static_cast<float>(std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v));
}

uint8_t to_e4m3(float x) {
    const float size = std::min(std::abs(x), 448.0f);
    const int exponent = std::max(std::ilogb(size), -6);
    // Why added: a significand that rounds up to the next power of two carries into the exponent.
    const auto eighths = static_cast<int>(std::nearbyint(std::ldexp(size, 3 - exponent)));
    return static_cast<uint8_t>((std::signbit(x) ? 0x80 : 0) | (((exponent + 6) << 3) + eighths));
}

void append(std::vector<uint8_t>& bytes, DType dtype, float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const auto push = [&](auto v) {
        const auto* raw = reinterpret_cast<const uint8_t*>(&v);
        bytes.insert(bytes.end(), raw, raw + sizeof(v));
    };
    switch (dtype) {
        case DType::kF32: return push(value);
        case DType::kBF16: return push(static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16));
        case DType::kE4M3: return push(to_e4m3(value));
        default: fail("randn: unsupported element type ", dtype_name(dtype));
    }
}

int64_t place_bytes(uint64_t seed) { return 512 * static_cast<int64_t>(1 + next_random(seed) % 2047); }

}  // namespace

int64_t Case::operator[](const std::string& dim) const {
    const auto it = dims.find(dim);
    MMX_CHECK(it != dims.end(), "case has no dimension ", dim);
    return it->second;
}

Bench::Bench(Backend& backend, std::string backend_name, Options options)
    : backend_(backend),
      backend_name_(std::move(backend_name)),
      options_(std::move(options)),
      peaks_(backend.peaks()),
      seed_((options_.seed << 32) + 1),
      place_(backend, place_bytes(options_.seed)) {
    std::fprintf(stderr, "%s: %s; copy %.0f GB/s, f32 %.2f, bf16 %.2f, fp8 %.2f TFLOP/s\n",
                 backend_name_.c_str(), backend_.device_name().c_str(), peaks_.copy_gbs,
                 peaks_.f32_gflops * 1e-3, peaks_.bf16_gflops * 1e-3, peaks_.fp8_gflops * 1e-3);
}

std::vector<Case> Bench::cases(const std::string& family, const std::string& op) const {
    const std::string path = options_.cases + "/" + family + ".csv";
    std::ifstream file(path);
    MMX_CHECK(file, "cannot read ", path);
    const auto split = [](std::string line) {
        if (!line.empty() && line.back() == '\r') line.pop_back();
        std::vector<std::string> cells;
        std::stringstream stream(line);
        for (std::string cell; std::getline(stream, cell, ',');) cells.push_back(cell);
        return cells;
    };
    std::string line;
    std::getline(file, line);
    const std::vector<std::string> header = split(line);
    std::vector<Case> found;
    while (std::getline(file, line)) {
        const std::vector<std::string> cells = split(line);
        if (cells.size() < 2 || cells[0] != op) continue;
        const bool large = cells[1] == "large", usual = cells[1] == "bench" || cells[1] == "both";
        if (options_.large ? !large : !usual) continue;
        Case c;
        for (size_t i = 2; i < cells.size(); ++i)
            if (!cells[i].empty()) c.dims[header[i]] = std::stoll(cells[i]);
        if (std::all_of(options_.only.begin(), options_.only.end(), [&](const auto& only) {
                return !c.has(only.first) || only.second.contains(c[only.first]);
            }))
            found.push_back(std::move(c));
    }
    return found;
}

std::vector<DType> Bench::dtypes() const {
    return options_.large ? std::vector{DType::kBF16} : std::vector{DType::kF32, DType::kBF16};
}

Buffer Bench::randn(DType dtype, int64_t count, float scale) {
    // Why a sample to draw from, and a limit beyond which the numbers repeat: making gigabytes of normals on
    // the host takes minutes. An odd limit, or pages would repeat as they are and blocks tie in the selector.
    constexpr int64_t kSample = 1 << 16, kUnique = (1 << 24) + 1;
    uint64_t state = seed_++;
    std::vector<uint8_t> sample;
    for (int64_t i = 0; i < kSample; ++i) append(sample, dtype, scale * next_normal(state));
    const auto width = dtype_bytes(dtype);
    std::vector<uint8_t> bytes(static_cast<size_t>(std::min(count, kUnique) * width));
    uint64_t random = 0;
    for (size_t at = 0, i = 0; at < bytes.size(); at += width, ++i, random >>= 16) {
        if (i % 4 == 0) random = next_random(state);
        std::memcpy(bytes.data() + at, sample.data() + (random % kSample) * width, width);
    }
    Buffer buffer = empty(dtype, count);
    auto* data = buffer.as<char>();
    backend_.to_device(data, bytes.data(), static_cast<int64_t>(bytes.size()));
    for (auto done = static_cast<int64_t>(bytes.size()); done < buffer.bytes(); done *= 2)
        backend_.copy(data + done, data, std::min(done, buffer.bytes() - done));
    return buffer;
}

uint64_t Bench::hash(const Buffer& buffer) {
    std::vector<uint8_t> bytes(std::min<int64_t>(buffer.bytes(), 1 << 24));
    backend_.to_host(bytes.data(), buffer.as(), static_cast<int64_t>(bytes.size()));
    uint64_t h = 0xCBF29CE484222325ull;
    for (const uint8_t byte : bytes) h = (h ^ byte) * 0x100000001B3ull;
    return h;
}

void Bench::report(const char* op, const Case& c, DType dtype, const Work& work,
                   const std::function<void()>& launch) {
    const double us = backend_.time_us(launch, options_.cold);
    const double baseline_us = work.baseline_run ? backend_.time_us(work.baseline_run, options_.cold) : 0;
    const double peak_gflops = work.math == DType::kF32    ? peaks_.f32_gflops
                               : work.math == DType::kBF16 ? peaks_.bf16_gflops
                                                           : peaks_.fp8_gflops;
    const double bytes_us = work.bytes / peaks_.copy_gbs * 1e-3;
    const double flops_us = work.flops > 0 ? work.flops / peak_gflops * 1e-3 : 0;
    const bool by_flops = flops_us > bytes_us;
    const double rate = (by_flops ? work.flops * 1e-6 : work.bytes * 1e-3) / us;
    const double share = std::max(bytes_us, flops_us) / us;
    const uint32_t digest = work.out ? static_cast<uint32_t>(hash(*work.out)) : 0;
    std::string dims;
    if (options_.json) {
        for (const auto& [name, value] : c.dims) dims += ", \"" + name + "\": " + std::to_string(value);
        std::printf(
            "{\"op\": \"%s\", \"backend\": \"%s\", \"device\": \"%s\", \"dtype\": \"%s\"%s, \"cold\": %s, "
            "\"us\": %.3f, \"%s\": %.4g, \"peak_share\": %.4f, \"baseline\": \"%s\", \"baseline_us\": %.3f, "
            "\"hash\": \"%08x\"}\n",
            op, backend_name_.c_str(), backend_.device_name().c_str(), dtype_name(dtype), dims.c_str(),
            options_.cold ? "true" : "false", us, by_flops ? "tflops" : "gbs", rate, share,
            work.baseline.c_str(), baseline_us, digest);
    } else {
        for (const auto& [name, value] : c.dims) dims += name + "=" + std::to_string(value) + " ";
        std::printf("%-18s %-4s %-8s %-72s %10.1f us %9.4g %s %4.0f%% of peak", op, backend_name_.c_str(),
                    dtype_name(dtype), dims.c_str(), us, rate, by_flops ? "TFLOP/s" : "GB/s   ", 100 * share);
        if (work.baseline_run) std::printf("  %5.2fx %s", baseline_us / us, work.baseline.c_str());
        std::printf("  #%08x\n", digest);
    }
    std::fflush(stdout);
}

}  // namespace mmx::bench
