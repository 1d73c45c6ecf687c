#include "cpp/core/check.h"
#include "cpp/kernels/launchers.h"

namespace mmx::cpu {

#ifdef MMX_CPU_ISA_LEVELS

namespace {

bool detect_v4() {
    __builtin_cpu_init();
    const bool v3 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    MMX_CHECK(v3, "mmx: the processor must have AVX2 and FMA (x86-64-v3)");
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_v4() {
    static const bool v4 = detect_v4();
    return v4;
}

}  // namespace

#define MMX_PICK_ISA(op, P) \
    void op(const P& p, Stream stream) { has_v4() ? v4::op(p, stream) : v3::op(p, stream); }
MMX_OPS(MMX_PICK_ISA)

const char* isa_name() { return has_v4() ? "x86-64-v4" : "x86-64-v3"; }

#else

#define MMX_ONLY_ISA(op, P) \
    void op(const P& p, Stream stream) { generic::op(p, stream); }
MMX_OPS(MMX_ONLY_ISA)

const char* isa_name() { return "generic"; }

#endif

}  // namespace mmx::cpu
