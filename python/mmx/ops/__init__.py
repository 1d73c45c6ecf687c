"""Every op as a plain function; the only user of ``torch.ops.mmx``. References: ``mmx.ops.reference``."""

from mmx.ops import _lib  # loads the libraries that the wrappers call
from mmx.ops.activation import Activation, gated_act
from mmx.ops.attention import paged_attention, sparse_attention
from mmx.ops.comm import all_reduce_add_rms_norm
from mmx.ops.embedding import embedding
from mmx.ops.fp8 import fp8_linear, fp8_moe_down, fp8_moe_gate_up, fp8_quantize, mxfp8_dequant
from mmx.ops.gemm import linear
from mmx.ops.kv_cache import index_k_store, kv_store
from mmx.ops.moe import moe_combine, moe_down, moe_gate_up, moe_plan, moe_router, moe_router_plan
from mmx.ops.norm import add_rms_norm, add_rms_norm_quantize, combine_add_rms_norm, rms_norm
from mmx.ops.qkv import norm_rope_store, qk_mean_squares
from mmx.ops.quant import fp8_block_dequant
from mmx.ops.rope import rope, rope_table
from mmx.ops.sampling import adjust_logits, logprobs, sample
from mmx.ops.selector import select_blocks
