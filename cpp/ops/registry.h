#pragma once

#include "cpp/ops/activation.h"
#include "cpp/ops/attention.h"
#include "cpp/ops/comm.h"
#include "cpp/ops/embedding.h"
#include "cpp/ops/fp8.h"
#include "cpp/ops/gemm.h"
#include "cpp/ops/kv_cache.h"
#include "cpp/ops/moe.h"
#include "cpp/ops/norm.h"
#include "cpp/ops/qkv.h"
#include "cpp/ops/quant.h"
#include "cpp/ops/rope.h"
#include "cpp/ops/sampling.h"
#include "cpp/ops/selector.h"

/// Registers the adaptor of one op (or of its workspace function) for backend B in library m.
#define MMX_REGISTER_OP(op, P) m.impl(#op, TORCH_BOX(&::mmx::ops::op<Backend>));
#define MMX_REGISTER_WORKSPACE(op, P) \
    m.impl(#op "_workspace", TORCH_BOX(&::mmx::ops::op##_workspace<Backend>));
