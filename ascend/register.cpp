#include <torch_npu/csrc/core/npu/NPUGuard.h>
#include <torch_npu/csrc/core/npu/NPUStream.h>
#include <torch_npu/csrc/framework/OpCommand.h>

#include "ascend/backend.h"
#include "cpp/ops/registry.h"

namespace {

struct Backend {
    /// Runs the launch from torch_npu's task queue, behind the torch operators that were called before.
    /// Parameters go in by value. The tensors need not be kept: memory that is freed meanwhile is reused on
    /// this stream only, by work that is queued behind.
    template <class P>
    static void enqueue(int32_t device_index, void (*launch)(const P&, mmx::Stream), const P& p) {
        const c10_npu::NPUGuard guard(static_cast<c10::DeviceIndex>(device_index));
        // Why false: true would wait for the queue to drain.
        const mmx::Stream stream =
            c10_npu::getCurrentNPUStream(static_cast<c10::DeviceIndex>(device_index)).stream(false);
        at_npu::native::OpCommand::RunOpApiV2("mmx", [launch, p, stream]() -> int {
            launch(p, stream);
            return 0;
        });
    }
#define MMX_FORWARD_OP(op, P) \
    static void op(const mmx::P& p, mmx::Stream stream) { mmx::ascend::op(p, stream); }
#define MMX_FORWARD_WORKSPACE(op, P) \
    static int64_t op##_workspace(const mmx::P& p) { return mmx::ascend::op##_workspace(p); }
    MMX_ASCEND_OPS(MMX_FORWARD_OP)
    MMX_ASCEND_WORKSPACE_OPS(MMX_FORWARD_WORKSPACE)
#undef MMX_FORWARD_OP
#undef MMX_FORWARD_WORKSPACE
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mmx, PrivateUse1, m) {
    MMX_ASCEND_OPS(MMX_REGISTER_OP)
    MMX_ASCEND_WORKSPACE_OPS(MMX_REGISTER_WORKSPACE)
}
