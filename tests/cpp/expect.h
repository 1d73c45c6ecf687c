#pragma once

#include <cstdio>
#include <string>

/// Minimal checks for tests without a framework: a failed EXPECT prints its place, and main returns the
/// count.
namespace mmx::test {

inline int failures = 0;

inline void expect(bool ok, const char* text, const char* file, int line) {
    if (ok) return;
    std::fprintf(stderr, "%s:%d: expected %s\n", file, line, text);
    ++failures;
}

/// The message of the exception that `f` throws, or an empty string.
template <class F>
std::string message_of(F&& f) {
    try {
        f();
    } catch (const std::exception& error) {
        return error.what();
    }
    return {};
}

inline int finish(const char* name) {
    std::printf("%s: %d failed\n", name, failures);
    return failures == 0 ? 0 : 1;
}

}  // namespace mmx::test

#define EXPECT(cond) ::mmx::test::expect((cond), #cond, __FILE__, __LINE__)
