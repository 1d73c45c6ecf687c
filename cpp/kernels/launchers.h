#pragma once

#include "cpp/core/ops.h"

/// CPU kernels. `stream` is ignored; scratch is the kernel's own, so no op asks for a workspace. Every kernel
/// is compiled once per instruction set level (sources.cmake); these entries pick the best one the
/// machine has.
namespace mmx::cpu {

MMX_OPS(MMX_DECLARE_OP)

/// Name of the instruction set level in use: "x86-64-v3", "x86-64-v4" or "generic".
const char* isa_name();

#ifdef MMX_CPU_ISA_LEVELS
namespace v3 {
MMX_OPS(MMX_DECLARE_OP)
}
namespace v4 {
MMX_OPS(MMX_DECLARE_OP)
}
#else
namespace generic {
MMX_OPS(MMX_DECLARE_OP)
}
#endif

}  // namespace mmx::cpu
