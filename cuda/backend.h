#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "cpp/ops/registry.h"
#include "cuda/kernels/launchers.h"

namespace {

/// torch's current stream of a device. Why by name at run time: a library that links the symbol does not load
/// where torch is a CPU build.
inline mmx::Stream current_stream(int32_t device_index) {
    using GetStream = AOTITorchError (*)(int32_t, void**);
    static const GetStream get = [] {
        void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
        MMX_CHECK(torch_cuda,
                  "mmx: CUDA tensors need a CUDA build of torch (libtorch_cuda.so is not loaded)");
        void* symbol = dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream");
        MMX_CHECK(symbol, "mmx: libtorch_cuda.so lacks aoti_torch_get_current_cuda_stream");
        return reinterpret_cast<GetStream>(symbol);
    }();
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(get(device_index, &stream));
    return stream;
}

struct Backend {
    template <class P>
    static void enqueue(int32_t device_index, void (*launch)(const P&, mmx::Stream), const P& p) {
        const torch::stable::accelerator::DeviceGuard guard(device_index);
        launch(p, current_stream(device_index));
    }
#define MMX_FORWARD_OP(op, P) \
    static void op(const mmx::P& p, mmx::Stream stream) { mmx::cuda::op(p, stream); }
#define MMX_FORWARD_WORKSPACE(op, P) \
    static int64_t op##_workspace(const mmx::P& p) { return mmx::cuda::op##_workspace(p); }
    MMX_CUDA_OPS(MMX_FORWARD_OP)
    MMX_CUDA_WORKSPACE_OPS(MMX_FORWARD_WORKSPACE)
#undef MMX_FORWARD_OP
#undef MMX_FORWARD_WORKSPACE
};

}  // namespace
