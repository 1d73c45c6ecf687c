#include "bench/common/bench.h"
#include "cpp/core/check.h"

namespace mmx::bench {

Backend* make_cuda_backend() { fail("--backend cuda: this mmx_bench was built without a CUDA compiler"); }

}  // namespace mmx::bench
