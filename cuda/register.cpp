#include "cuda/backend.h"

// One line per op that has a CUDA kernel; an op that is missing here runs its reference.
STABLE_TORCH_LIBRARY_IMPL(mmx, CUDA, m) {
    MMX_CUDA_OPS(MMX_REGISTER_OP)
    MMX_CUDA_WORKSPACE_OPS(MMX_REGISTER_WORKSPACE)
}
