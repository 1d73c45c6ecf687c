#pragma once

namespace mmx {

/// A device queue: cudaStream_t or aclrtStream behind a plain pointer, null on the CPU.
using Stream = void*;

}  // namespace mmx
