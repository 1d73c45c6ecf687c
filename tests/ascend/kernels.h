#pragma once

#include "ascend/kernels/norm.h"

/// The AscendC kernels that run on the emulator: op, Params, kind of launch.
#define MMX_ASCEND_KERNELS(X)            \
    X(rms_norm, RmsNormParams, kAivOnly) \
    X(add_rms_norm, AddRmsNormParams, kAivOnly)

#define MMX_ASCEND_WORKSPACE_KERNELS(X)
