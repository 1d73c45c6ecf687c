#pragma once

#include <kernel_operator.h>

#include <vector>

#include "tests/ascend/emulator/launch.h"
#include "tests/cpp/expect.h"

/// Small kernels for the emulator's own tests.
namespace probe {

using namespace AscendC;

/// Global memory of a probe: values that the kernel may read and write.
template <class T>
struct Gm {
    std::vector<T> values;
    explicit Gm(size_t count, T value = T{}) : values(count, value) {}
    explicit Gm(std::vector<T> given) : values(std::move(given)) {}
    emu::GmBuffer buffer(bool writable = true) {
        emu::GmBuffer b;
        b.name = "values";
        b.base = reinterpret_cast<uintptr_t>(values.data());
        b.bytes = values.size() * sizeof(T);
        b.writable = writable;
        return b;
    }
    GlobalTensor<T> tensor() {
        GlobalTensor<T> t;
        t.SetGlobalBuffer(values.data(), values.size());
        return t;
    }
};

inline emu::Report run(const std::function<void()>& kernel, emu::Kind kind = emu::Kind::kAivOnly,
                       int blocks = 1, std::vector<emu::GmBuffer> gm = {}, int schedule = 0) {
    emu::Options options;
    options.schedule = schedule;
    return emu::launch(kernel, kind, blocks, gm, options);
}

/// A kernel on one vector core with a few kilobytes of UB.
template <class F>
emu::Report on_aiv(F&& f, std::vector<emu::GmBuffer> gm = {}) {
    return run(
        [&] {
            TPipe pipe;
            TBuf<TPosition::VECCALC> buffer;
            pipe.InitBuffer(buffer, 64 * 1024);
            f(pipe, buffer);
        },
        emu::Kind::kAivOnly, 1, std::move(gm));
}

inline void expect_clean(const emu::Report& report, const char* file, int line) {
    mmx::test::expect(report.violation.empty(), report.violation.c_str(), file, line);
}
inline void expect_check(const emu::Report& report, int check, const char* says, const char* file, int line) {
    const bool right = report.check == check && report.violation.find(says) != std::string::npos;
    const std::string text =
        "check " + std::to_string(check) + " with '" + says + "', got: " + report.violation;
    mmx::test::expect(right, text.c_str(), file, line);
}

}  // namespace probe

#define EXPECT_CLEAN(report) ::probe::expect_clean((report), __FILE__, __LINE__)
#define EXPECT_CHECK(report, check, says) ::probe::expect_check((report), (check), (says), __FILE__, __LINE__)
