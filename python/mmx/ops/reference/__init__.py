"""Plain-torch references under the names of the ops: oracle, documentation and fallback.

Arguments are those of the wrappers in ``mmx.ops``; results are returned (or written in place where the op
updates an argument). Written to be read; arithmetic in fp32 unless the inputs are fp64.
"""

from mmx.ops.reference.activation import gated_act
from mmx.ops.reference.attention import paged_attention, sparse_attention
from mmx.ops.reference.comm import all_reduce_add_rms_norm
from mmx.ops.reference.embedding import embedding
from mmx.ops.reference.fp8 import fp8_linear, fp8_moe_down, fp8_moe_gate_up, fp8_quantize, mxfp8_dequant
from mmx.ops.reference.gemm import linear
from mmx.ops.reference.kv_cache import index_k_store, kv_store
from mmx.ops.reference.moe import moe_combine, moe_down, moe_gate_up, moe_plan, moe_router, moe_router_plan
from mmx.ops.reference.norm import add_rms_norm, add_rms_norm_quantize, combine_add_rms_norm, rms_norm
from mmx.ops.reference.qkv import norm_rope_store, qk_mean_squares
from mmx.ops.reference.quant import fp8_block_dequant
from mmx.ops.reference.rope import rope
from mmx.ops.reference.sampling import adjust_logits, logprobs, sample
from mmx.ops.reference.selector import select_blocks
