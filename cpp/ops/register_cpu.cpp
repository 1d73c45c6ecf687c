#include "cpp/kernels/launchers.h"
#include "cpp/ops/registry.h"

namespace {

struct Backend {
    template <class P>
    static void enqueue(int32_t, void (*launch)(const P&, mmx::Stream), const P& p) {
        launch(p, nullptr);
    }
#define MMX_FORWARD_OP(op, P) \
    static void op(const mmx::P& p, mmx::Stream stream) { mmx::cpu::op(p, stream); }
#define MMX_FORWARD_WORKSPACE(op, P) \
    static int64_t op##_workspace(const mmx::P&) { return 0; }
    MMX_OPS(MMX_FORWARD_OP)
    MMX_WORKSPACE_OPS(MMX_FORWARD_WORKSPACE)
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mmx, CPU, m) {
    MMX_OPS(MMX_REGISTER_OP)
    MMX_WORKSPACE_OPS(MMX_REGISTER_WORKSPACE)
}
