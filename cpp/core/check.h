#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace mmx {

/// What every failed check throws; reaches Python as RuntimeError with the same text.
class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    throw Error(text.str());
}

}  // namespace mmx

/// Throws mmx::Error made of `parts` unless `cond` holds. The parts say what was expected and what came.
#define MMX_CHECK(cond, ...)                   \
    do {                                       \
        if (!(cond)) ::mmx::fail(__VA_ARGS__); \
    } while (0)
