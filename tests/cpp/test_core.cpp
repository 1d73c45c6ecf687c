#include <stdexcept>
#include <vector>

#include "cpp/core/check.h"
#include "cpp/core/math.h"
#include "cpp/core/params/sampling.h"
#include "cpp/kernels/launchers.h"
#include "tests/cpp/expect.h"

using namespace mmx;

namespace {

void test_math() {
    static_assert(ceil_div(0, 8) == 0 && ceil_div(1, 8) == 1 && ceil_div(8, 8) == 1 && ceil_div(9, 8) == 2);
    static_assert(align_up(0, 16) == 0 && align_up(17, 16) == 32);
}

void test_check_carries_values() {
    const int64_t hidden = 7;
    EXPECT(test::message_of([&] { MMX_CHECK(hidden == 8, "x: hidden must be 8, got ", hidden); }) ==
           "x: hidden must be 8, got 7");
    EXPECT(test::message_of([&] { MMX_CHECK(hidden == 7, "never"); }).empty());
}

void test_dtype_sizes() {
    EXPECT(dtype_bytes(DType::kF32) == 4 && dtype_bytes(DType::kBF16) == 2 && dtype_bytes(DType::kE4M3) == 1);
    EXPECT(std::string(dtype_name(DType::kE4M3)) == "float8_e4m3fn");
}

/// Draws are spread evenly and differ between seeds and steps.
void test_sampling_uniform() {
    std::vector<int> bins(16);
    for (int64_t step = 0; step < 16000; ++step) {
        const float u = sampling_uniform(42, step);
        EXPECT(u >= 0.0f && u < 1.0f);
        ++bins[static_cast<size_t>(u * 16)];
    }
    for (const int count : bins) EXPECT(count > 800 && count < 1200);
    EXPECT(sampling_uniform(1, 0) != sampling_uniform(2, 0));
    EXPECT(sampling_uniform(1, 0) != sampling_uniform(1, 1));
}

/// A launcher works without torch: rms_norm of a constant row is the weight.
void test_launcher_without_torch() {
    const std::vector<float> x(8, 3.0f), weight{0, 1, 2, 3, 4, 5, 6, 7};
    std::vector<float> out(8, -1.0f);
    cpu::rms_norm({.out = out.data(),
                   .x = x.data(),
                   .weight = weight.data(),
                   .num_tokens = 1,
                   .num_heads = 1,
                   .hidden = 8,
                   .out_token_stride = 8,
                   .out_head_stride = 8,
                   .x_token_stride = 8,
                   .x_head_stride = 8,
                   .eps = 0.0f,
                   .gemma = false,
                   .dtype = DType::kF32,
                   .weight_dtype = DType::kF32},
                  nullptr);
    for (size_t i = 0; i < out.size(); ++i) EXPECT(out[i] > weight[i] - 1e-5f && out[i] < weight[i] + 1e-5f);
}

}  // namespace

int main() {
    test_math();
    test_check_carries_values();
    test_dtype_sizes();
    test_sampling_uniform();
    test_launcher_without_torch();
    return test::finish("test_core");
}
