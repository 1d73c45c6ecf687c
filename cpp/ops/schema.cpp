#include <torch/csrc/stable/library.h>

// The only place where an op's signature is written. Outputs come first and are marked as mutated; scratch is
// `workspace`, a mutated int8 tensor of at least `<op>_workspace(same arguments)` bytes.
STABLE_TORCH_LIBRARY(mmx, m) {
    // norm
    m.def("rms_norm(Tensor(a!) out, Tensor x, Tensor weight, float eps, bool gemma) -> ()");
    m.def(
        "add_rms_norm(Tensor(a!) out, Tensor(b!) residual, Tensor x, Tensor weight, float eps, "
        "bool gemma) -> ()");
    m.def(
        "add_rms_norm_quantize(Tensor(a!) out, Tensor(b!) codes, Tensor(c!) scale, Tensor(d!) residual, "
        "Tensor x, Tensor weight, float eps, bool gemma) -> ()");
    m.def(
        "combine_add_rms_norm(Tensor(a!) out, Tensor(b!)? codes, Tensor(c!)? scale, Tensor(d!) residual, "
        "Tensor x, Tensor row_positions, Tensor topk_weights, Tensor? shared, Tensor weight, float eps, "
        "bool gemma) -> ()");
    // comm: `inboxes` of all ranks, none for the only one
    m.def(
        "all_reduce_add_rms_norm(Tensor(a!) out, Tensor(b!)? codes, Tensor(c!)? scale, Tensor(d!) residual, "
        "Tensor x, Tensor weight, float eps, bool gemma, Tensor(e!)[] inboxes, Tensor(f!)? epochs, int rank, "
        "float timeout) -> ()");
    // rope
    m.def("rope(Tensor(a!) out, Tensor x, Tensor cos_sin, Tensor positions) -> ()");
    // kv_cache
    m.def(
        "kv_store(Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor k, Tensor v, Tensor slot_mapping, "
        "Tensor? k_scale=None, Tensor? v_scale=None) -> ()");
    m.def("index_k_store(Tensor(a!) index_k_cache, Tensor index_k, Tensor slot_mapping) -> ()");
    // qkv
    m.def(
        "norm_rope_store(Tensor(a!) qkv, Tensor(b!) k_cache, Tensor(c!) v_cache, Tensor(d!)? index_k_cache, "
        "Tensor q_weight, Tensor k_weight, Tensor? index_q_weight, Tensor? index_k_weight, Tensor cos_sin, "
        "Tensor positions, Tensor slot_mapping, int num_heads, float eps, bool gemma, Tensor? k_scale=None, "
        "Tensor? v_scale=None, Tensor? mean_squares=None) -> ()");
    m.def(
        "qk_mean_squares(Tensor(a!) out, Tensor qkv, int num_heads, int num_kv_heads, int num_parts, "
        "Tensor(b!)[] inboxes, Tensor(c!)? epochs, int rank, float timeout) -> ()");
    // selector
    m.def(
        "select_blocks(Tensor(a!) block_ids, Tensor index_q, Tensor index_k_cache, Tensor block_table, "
        "Tensor cu_seqlens_q, Tensor seq_lens, Tensor(b!) workspace, int max_seqlen_q, int init_blocks, "
        "int local_blocks, bool fixed_split=False) -> ()");
    m.def(
        "select_blocks_workspace(Tensor block_ids, Tensor index_q, Tensor index_k_cache, Tensor block_table, "
        "Tensor cu_seqlens_q, Tensor seq_lens, int max_seqlen_q, int init_blocks, int local_blocks, "
        "bool fixed_split=False) -> int");
    // attention
    m.def(
        "paged_attention(Tensor(a!) out, Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, "
        "Tensor cu_seqlens_q, Tensor seq_lens, Tensor(b!) workspace, int max_seqlen_q, float scale, "
        "Tensor? k_scale=None, Tensor? v_scale=None, bool fixed_split=False, Tensor(c!)? codes=None, "
        "Tensor(d!)? codes_scale=None) -> ()");
    m.def(
        "paged_attention_workspace(Tensor out, Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, "
        "Tensor cu_seqlens_q, Tensor seq_lens, int max_seqlen_q, float scale, Tensor? k_scale=None, "
        "Tensor? v_scale=None, bool fixed_split=False, Tensor? codes=None, Tensor? codes_scale=None) -> int");
    m.def(
        "sparse_attention(Tensor(a!) out, Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_ids, "
        "Tensor block_table, Tensor cu_seqlens_q, Tensor seq_lens, Tensor(b!) workspace, int max_seqlen_q, "
        "float scale, Tensor? k_scale=None, Tensor? v_scale=None, bool fixed_split=False) -> ()");
    m.def(
        "sparse_attention_workspace(Tensor out, Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_ids, "
        "Tensor block_table, Tensor cu_seqlens_q, Tensor seq_lens, int max_seqlen_q, float scale, "
        "Tensor? k_scale=None, Tensor? v_scale=None, bool fixed_split=False) -> int");
    // activation
    m.def("gated_act(Tensor(a!) out, Tensor gate_up, int activation, float alpha, float limit) -> ()");
    // moe
    m.def(
        "moe_router(Tensor(a!) topk_ids, Tensor(b!) topk_weights, Tensor x, Tensor gate_weight, "
        "Tensor? bias, Tensor(c!) workspace, float routed_scale) -> ()");
    m.def(
        "moe_router_workspace(Tensor topk_ids, Tensor topk_weights, Tensor x, Tensor gate_weight, "
        "Tensor? bias, float routed_scale) -> int");
    m.def(
        "moe_plan(Tensor(a!) expert_offsets, Tensor(b!) sorted_rows, Tensor(c!) row_positions, "
        "Tensor topk_ids, Tensor(d!) workspace, int first_expert) -> ()");
    m.def(
        "moe_plan_workspace(Tensor expert_offsets, Tensor sorted_rows, Tensor row_positions, "
        "Tensor topk_ids, int first_expert) -> int");
    m.def(
        "moe_router_plan(Tensor(a!) topk_ids, Tensor(b!) topk_weights, Tensor(c!) expert_offsets, "
        "Tensor(d!) sorted_rows, Tensor(e!) row_positions, Tensor x, Tensor gate_weight, Tensor? bias, "
        "Tensor(f!) workspace, float routed_scale, int first_expert, int num_shared) -> ()");
    m.def(
        "moe_router_plan_workspace(Tensor topk_ids, Tensor topk_weights, Tensor expert_offsets, "
        "Tensor sorted_rows, Tensor row_positions, Tensor x, Tensor gate_weight, Tensor? bias, "
        "float routed_scale, int first_expert, int num_shared) -> int");
    m.def(
        "moe_gate_up(Tensor(a!) out, Tensor x, Tensor weight, Tensor? weight_scale, Tensor expert_offsets, "
        "Tensor sorted_rows, Tensor(b!) workspace, int activation, float alpha, float limit) -> ()");
    m.def(
        "moe_gate_up_workspace(Tensor out, Tensor x, Tensor weight, Tensor? weight_scale, "
        "Tensor expert_offsets, Tensor sorted_rows, int activation, float alpha, float limit) -> int");
    m.def(
        "moe_down(Tensor(a!) out, Tensor x, Tensor weight, Tensor? weight_scale, Tensor expert_offsets, "
        "Tensor(b!) workspace) -> ()");
    m.def(
        "moe_down_workspace(Tensor out, Tensor x, Tensor weight, Tensor? weight_scale, "
        "Tensor expert_offsets) -> int");
    m.def(
        "moe_combine(Tensor(a!) out, Tensor x, Tensor row_positions, Tensor topk_weights, "
        "Tensor? shared) -> ()");
    // gemm
    m.def("linear(Tensor(a!) out, Tensor x, Tensor weight) -> ()");
    // embedding
    m.def("embedding(Tensor(a!) out, Tensor weight, Tensor ids, int first_row) -> ()");
    // quant
    m.def("fp8_block_dequant(Tensor(a!) out, Tensor x, Tensor scale) -> ()");
    // fp8
    m.def("fp8_quantize(Tensor(a!) out, Tensor(b!) scale, Tensor x) -> ()");
    m.def("fp8_linear(Tensor(a!) out, Tensor x, Tensor x_scale, Tensor weight, Tensor weight_scale) -> ()");
    m.def(
        "fp8_moe_gate_up(Tensor(a!) out, Tensor(b!) out_scale, Tensor x, Tensor x_scale, Tensor weight, "
        "Tensor weight_scale, Tensor expert_offsets, Tensor sorted_rows, Tensor(c!) workspace, "
        "int activation, float alpha, float limit) -> ()");
    m.def(
        "fp8_moe_gate_up_workspace(Tensor out, Tensor out_scale, Tensor x, Tensor x_scale, Tensor weight, "
        "Tensor weight_scale, Tensor expert_offsets, Tensor sorted_rows, int activation, float alpha, "
        "float limit) -> int");
    m.def(
        "fp8_moe_down(Tensor(a!) out, Tensor x, Tensor x_scale, Tensor weight, Tensor weight_scale, "
        "Tensor expert_offsets) -> ()");
    m.def("mxfp8_dequant(Tensor(a!) out, Tensor x, Tensor scale) -> ()");
    // sampling
    m.def(
        "adjust_logits(Tensor(a!) logits, Tensor history, Tensor cu_history, Tensor num_prompt, "
        "Tensor repetition, Tensor frequency, Tensor presence, Tensor bias_ids, Tensor bias_values, "
        "Tensor cu_bias, Tensor(b!) workspace) -> ()");
    m.def(
        "adjust_logits_workspace(Tensor logits, Tensor history, Tensor cu_history, Tensor num_prompt, "
        "Tensor repetition, Tensor frequency, Tensor presence, Tensor bias_ids, Tensor bias_values, "
        "Tensor cu_bias) -> int");
    m.def(
        "sample(Tensor(a!) token_ids, Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, "
        "Tensor min_p, Tensor seeds, Tensor steps, Tensor(b!) workspace) -> ()");
    m.def(
        "sample_workspace(Tensor token_ids, Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, "
        "Tensor min_p, Tensor seeds, Tensor steps) -> int");
    m.def(
        "logprobs(Tensor(a!) logprobs, Tensor(b!) ranks, Tensor(c!) top_ids, Tensor(d!) top_logprobs, "
        "Tensor logits, Tensor token_ids, Tensor(e!) workspace) -> ()");
    m.def(
        "logprobs_workspace(Tensor logprobs, Tensor ranks, Tensor top_ids, Tensor top_logprobs, "
        "Tensor logits, Tensor token_ids) -> int");
}
