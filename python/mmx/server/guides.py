"""What two well-known launch guides use, and what mmx does with it: ``mmx serve --help=guides``."""

from __future__ import annotations

from mmx.server.flag_kinds import Flag, normal
from mmx.server.flags import FLAGS
from mmx.server.variables import MODELSCOPE, MODELSCOPE_NOTE, PASSED_THROUGH

# Settings without a field of their own that change another one.
DERIVED = ("compilation_config",)

TRT = "TensorRT-LLM: deployment guide for MiniMax-M3"
ASCEND = "vllm-ascend: tutorial for MiniMax-M2.5"

TRT_FLAGS = (
    "MODEL", "--trust_remote_code", "--reasoning_parser", "--tool_parser", "--chat_template", "--host",
    "--extra_llm_api_options", "--tp_size", "--moe_expert_parallel_size", "--enable_attention_dp",
)  # fmt: skip
TRT_KEYS = (
    "max_batch_size", "max_num_tokens", "max_seq_len", "tensor_parallel_size", "moe_expert_parallel_size",
    "enable_attention_dp", "trust_remote_code", "cuda_graph_config.enable_padding",
    "cuda_graph_config.max_batch_size", "kv_cache_config.free_gpu_memory_fraction",
    "kv_cache_config.enable_block_reuse", "sparse_attention_config.algorithm", "stream_interval",
    "num_postprocess_workers",
)  # fmt: skip
ASCEND_FLAGS = (
    "MODEL", "--served-model-name", "--host", "--port", "--trust-remote-code", "--quantization",
    "--async-scheduling", "--compilation-config", "--additional-config", "--enable-expert-parallel",
    "--tensor-parallel-size", "--data-parallel-size", "--decode-context-parallel-size",
    "--prefill-context-parallel-size", "--cp-kv-cache-interleave-size", "--enable-chunked-prefill",
    "--enable-prefix-caching", "--max-num-seqs", "--max-model-len", "--max-num-batched-tokens", "--seed",
    "--gpu-memory-utilization", "--speculative_config", "--enable-auto-tool-choice", "--tool-call-parser",
    "--reasoning-parser", "--enable-force-include-usage", "--model-loader-extra-config",
)  # fmt: skip
ASCEND_VARIABLES = (
    "VLLM_ASCEND_ENABLE_FUSED_MC2", "VLLM_ASCEND_ENABLE_FLASHCOMM1", "VLLM_ASCEND_BALANCE_SCHEDULING",
    MODELSCOPE, *PASSED_THROUGH,
)  # fmt: skip


def flag_of(spelling: str) -> Flag:
    """The flag that a guide's command-line spelling or YAML key means; KeyError if there is none."""
    if spelling == "MODEL":
        return FLAGS.flags[FLAGS.positional]
    if spelling in FLAGS.paths:
        return FLAGS.paths[spelling]
    return FLAGS.names[normal(spelling.partition(".")[0])][0]


def answer(flag: Flag) -> str:
    """Used, refused or one line in the start log."""
    used = flag.target is not None or flag.name in DERIVED
    if flag.refuse is not None:
        return "used; refused where it disagrees" if used else "refused if it asks for more than is built"
    return "used" if used else "line in the start log"


def _table(head: str, spellings: tuple[str, ...]) -> list[str]:
    lines = [f"| {head} | flag of mmx | answer | meaning |", "| --- | --- | --- | --- |"]
    for spelling in spellings:
        flag = flag_of(spelling)
        lines.append(f"| `{spelling}` | `{flag.spelling}` | {answer(flag)} | {flag.help} |")
    return [*lines, ""]


def _variable(name: str) -> str:
    for flag in FLAGS.flags.values():
        if name in flag.env:
            return f"| `{name}` | `{flag.spelling}` | {answer(flag)} | {flag.help} |"
    meaning = MODELSCOPE_NOTE if name == MODELSCOPE else f"read by {PASSED_THROUGH[name]}, not by mmx"
    return f"| `{name}` |  | line in the start log | {meaning} |"


def guides_markdown() -> str:
    """The tables of docs/guides.md."""
    lines = [f"### {TRT}", ""]
    lines += _table("flag", TRT_FLAGS)
    lines += _table("YAML key", TRT_KEYS)
    lines += [f"### {ASCEND}", ""]
    lines += _table("flag", ASCEND_FLAGS)
    lines += ["| variable | flag of mmx | answer | meaning |", "| --- | --- | --- | --- |"]
    lines += [_variable(name) for name in ASCEND_VARIABLES]
    return "\n".join(lines) + "\n"
