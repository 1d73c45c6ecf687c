#include <pybind11/pybind11.h>

#include "cpp/kernels/launchers.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
    m.doc() = "Build facts and host-side helpers of mmx; no tensors cross here.";
    m.def(
        "build_info",
        [] {
            py::dict info;
            info["version"] = MMX_VERSION;
            info["compiler"] = __VERSION__;
            info["cpu_isa"] = mmx::cpu::isa_name();
            info["cuda"] = static_cast<bool>(MMX_HAVE_CUDA);
            info["cuda_archs"] = MMX_CUDA_ARCHS;
            return info;
        },
        "Facts of the build, and the CPU instruction set level in use.");
}
