"""The launch commands, variables and YAML file of the two guides."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from mmx.config import ParallelConfig
from mmx.server.__main__ import main
from mmx.server.flag_kinds import normal
from mmx.server.guides import ASCEND_FLAGS, ASCEND_VARIABLES, TRT_FLAGS, TRT_KEYS, flag_of, guides_markdown
from mmx.server.settings import ServerConfig, load_config

PAGE = Path(__file__).parents[2] / "docs" / "guides.md"
YAML = """
max_batch_size: 256
max_num_tokens: 8192
tensor_parallel_size: 8
moe_expert_parallel_size: 8
enable_attention_dp: true
trust_remote_code: true
cuda_graph_config:
  enable_padding: true
  max_batch_size: 256
kv_cache_config:
  free_gpu_memory_fraction: 0.3
  enable_block_reuse: false
sparse_attention_config:
  algorithm: minimax_m3
stream_interval: 10
num_postprocess_workers: 4
"""
TRT = (
    "/models/M3 --trust_remote_code --reasoning_parser minimax_m3 --tool_parser minimax_m3 "
    "--chat_template /models/M3/chat_template.jinja --host 0.0.0.0 --extra_llm_api_options {file}"
)
TRT_ONE_DEVICE = " --tp_size 1 --moe_expert_parallel_size 1 --enable_attention_dp false"
DRAFT = (
    """'{"enforce_eager": true, "method": "eagle3", "model": "/w/Eagle3/", "num_speculative_tokens": 3}'"""
)
A3 = (
    "/w/M2.5 --served-model-name MiniMax-M2.5 --host 0.0.0.0 --port 8000 --trust-remote-code "
    "--quantization ascend --async-scheduling --compilation-config "
    """'{"cudagraph_mode": "FULL_DECODE_ONLY"}' --additional-config '{"enable_cpu_binding":true}' """
    "--enable-expert-parallel --tensor-parallel-size 4 --data-parallel-size 4 --max-num-seqs 48 "
    "--max-model-len 40690 --max-num-batched-tokens 16384 --gpu-memory-utilization 0.85 "
    f"--speculative_config {DRAFT}"
)
A3_LONG = (
    "/w/M2.5 --tensor-parallel-size 8 --data-parallel-size 1 --decode-context-parallel-size 1 "
    "--prefill-context-parallel-size 2 --cp-kv-cache-interleave-size 128 --max-num-seqs 16 "
    "--max-model-len 138000 --max-num-batched-tokens 65536 --gpu-memory-utilization 0.85 "
    f"--speculative_config {DRAFT}"
)
A2 = (
    "/w/M2.5 --served-model-name MiniMax-M2.5 --host 0.0.0.0 --port 8000 --trust-remote-code "
    "--tensor-parallel-size 8 --quantization ascend --enable-expert-parallel --enable-chunked-prefill "
    "--enable-prefix-caching --max-num-seqs 32 --seed 1024 --max-num-batched-tokens 32768 "
    """--compilation-config '{"cudagraph_mode": "FULL_DECODE_ONLY","cudagraph_capture_sizes":[4,16]}' """
    "--gpu-memory-utilization 0.9 --enable-auto-tool-choice --tool-call-parser minimax_m2 "
    "--reasoning-parser minimax_m2_append_think --enable-force-include-usage "
    """--additional-config '{"enable_cpu_binding":true}' --model-loader-extra-config """
    """'{"enable_multithread_load":true,"num_threads":16}' """
    f"--speculative_config {DRAFT}"
)
ASCEND_ONE_DEVICE = " -tp 1 -dp 1 -pcp 1 --no-enable-expert-parallel"


def load(command: str, environ: dict[str, str] | None = None) -> ServerConfig:
    return load_config(shlex.split(command), environ or {})


@pytest.fixture
def options(tmp_path: Path) -> Path:
    file = tmp_path / "minimax-m3-throughput.yaml"
    file.write_text(YAML)
    return file


def test_trt_command_loads_as_it_stands(options: Path) -> None:
    parallel = load(TRT.format(file=options)).parallel
    assert (parallel.tensor_parallel_size, parallel.expert_parallel_size, parallel.world_size) == (8, 8, 8)
    assert parallel.attention_dp and parallel.num_groups == 8


def test_trt_command_on_one_device(options: Path) -> None:
    config = load(TRT.format(file=options) + TRT_ONE_DEVICE)
    engine, answer = config.engine, config.answer
    assert (engine.max_num_seqs, engine.max_num_batched_tokens) == (256, 8192)
    assert engine.enable_prefix_caching is False
    assert answer.stream_interval == 10
    assert (answer.reasoning_parser, answer.tool_call_parser) == ("minimax_m3", "minimax_m3")
    assert config.http.host == "0.0.0.0"
    assert config.model.chat_template == "/models/M3/chat_template.jinja"
    assert config.checkpoint.sparse_attention == {"algorithm": "minimax_m3"}
    assert engine.kv_cache_free_gpu_memory_fraction == 0.3
    for name in ("--cuda-graph-padding", "--num-postprocess-workers"):
        assert sum(note.startswith(name + " ") for note in config.notes) == 1


def sizes_of(parallel: ParallelConfig) -> tuple[int, int, int, bool | None]:
    """Ranks of tensor, data and prefill context parallelism, and whether experts are dealt out."""
    dp, pcp = parallel.data_parallel_size, parallel.prefill_context_parallel_size
    return parallel.tensor_parallel_size, dp, pcp, parallel.expert_parallel


@pytest.mark.parametrize(
    ("command", "sizes"),
    [(A3, (4, 4, 1, True)), (A3_LONG, (8, 1, 2, None)), (A2, (8, 1, 1, True))],
    ids=["A3", "A3-long", "A2"],
)
def test_ascend_layouts(command: str, sizes: tuple[int, int, int, bool | None]) -> None:
    config = load(command)
    assert sizes_of(config.parallel) == sizes
    assert config.parallel.world_size == 16 or command.startswith(A2)
    assert config.launch.bind_cpus == ("enable_cpu_binding" in command)


@pytest.mark.parametrize(
    ("command", "sizes"),
    [(A3, (48, 16384, 40690)), (A3_LONG, (16, 65536, 138000)), (A2, (32, 32768, None))],
    ids=["A3", "A3-long", "A2"],
)
def test_ascend_commands_on_one_device(command: str, sizes: tuple[int, int, int | None]) -> None:
    config = load(command + ASCEND_ONE_DEVICE)
    engine = config.engine
    assert (engine.max_num_seqs, engine.max_num_batched_tokens, engine.max_model_len) == sizes
    drafts = [note for note in config.notes if "drafts are not used yet" in note]
    assert len(drafts) == 1 and drafts[0].startswith("--speculative-config ")
    assert not engine.enforce_eager


def test_ascend_answers_on_one_device() -> None:
    config = load(A2 + ASCEND_ONE_DEVICE)
    assert config.answer.reasoning_parser == "minimax_m2_append_think"
    assert config.answer.force_include_usage is True
    assert config.engine.seed == 1024
    assert config.model.served_names == ("MiniMax-M2.5",)


def test_variables_are_answered_once() -> None:
    environ = {
        "HCCL_BUFFSIZE": "1024",
        "OMP_NUM_THREADS": "1",
        "VLLM_USE_MODELSCOPE": "True",
        "VLLM_ASCEND_BALANCE_SCHEDULING": "1",
        "VLLM_ASCEND_ENABLE_FLASHCOMM1": "1",
        "VLLM_ASCEND_ENABLE_FUSED_MC2": "1",
    }
    notes = load("m", environ).notes
    assert "left to the libraries that read them: HCCL_BUFFSIZE=1024, OMP_NUM_THREADS=1" in notes
    for word in ("VLLM_USE_MODELSCOPE", "--enable-balance-scheduling", "--enable-fused-mc2"):
        assert sum(note.startswith(word + " ") for note in notes) == 1
    assert len(notes) == 4


@pytest.mark.parametrize("spelling", [*TRT_FLAGS, *TRT_KEYS, *ASCEND_FLAGS])
def test_every_row_of_the_tables_is_a_flag(spelling: str) -> None:
    assert flag_of(spelling).help


def test_tables_have_every_flag_of_the_commands() -> None:
    for command, rows in ((TRT + TRT_ONE_DEVICE, TRT_FLAGS), (A3 + A3_LONG + A2, ASCEND_FLAGS)):
        used = {normal(word) for word in shlex.split(command) if word.startswith("--")}
        assert used <= {normal(row) for row in rows}


def test_help_prints_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help=guides"]) == 0
    assert capsys.readouterr().out == guides_markdown() + "\n"


def test_all_trt_keys_load_where_they_ask_for_one_device(tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(
        "max_batch_size: 4\nmax_num_tokens: 256\nmax_seq_len: 512\ntensor_parallel_size: 1\n"
        "pipeline_parallel_size: 1\ncontext_parallel_size: 1\nmoe_expert_parallel_size: 1\n"
        "moe_tensor_parallel_size: 1\nmoe_cluster_parallel_size: 1\nenable_attention_dp: false\n"
        "attention_dp_config: {enable_balance: true, timeout_iters: 1, batching_wait_iters: 1}\n"
        "trust_remote_code: true\ncuda_graph_config: {enable_padding: true, batch_sizes: [1, 2]}\n"
        "kv_cache_config:\n  free_gpu_memory_fraction: 0.7\n  enable_block_reuse: true\n  dtype: auto\n"
        "  tokens_per_block: 128\n  host_cache_size: 0\n  max_tokens: 4096\n  event_buffer_max_size: 8\n"
        "  use_kv_cache_manager_v2: true\n  block_reuse_policy: all\n"
        "sparse_attention_config: {algorithm: minimax_m3, implementation: msa, indexer_kv_dtype: bf16}\n"
        "moe_config: {backend: CUTLASS, use_low_precision_moe_combine: false}\n"
        "speculative_config: {decoding_type: Eagle3, max_draft_len: 3, speculative_model: /w/e}\n"
        "scheduler_config: {capacity_scheduler_policy: MAX_UTILIZATION, waiting_queue_policy: fcfs}\n"
        "torch_compile_config: {capture_num_tokens: [64]}\nenable_chunked_prefill: true\n"
        "enable_autotuner: true\ndisable_overlap_scheduler: false\nstream_interval: 2\n"
        "num_postprocess_workers: 4\nprint_iter_log: true\nreturn_perf_metrics: true\n"
        "enable_iter_perf_stats: true\nreasoning_parser: minimax_m3\ntool_parser: minimax_m3\n"
        "chat_template: t.jinja\nserved_model_name: m\nguided_decoding_backend: xgrammar\n"
        "backend: pytorch\n"
    )
    config = load(f"m --config {file}")
    assert (config.engine.max_num_seqs, config.engine.max_model_len) == (4, 512)
    assert config.checkpoint.block_size == 128
    answered = [note.split()[0] for note in config.notes]
    assert len(answered) == len(set(answered))
    for name in ("--moe-config", "--speculative-config", "--torch-compile-config", "--enable-autotuner"):
        assert name in answered


def test_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    # To renew the page, replace everything from its first table heading on.
    assert text[text.index("### ") :] == guides_markdown(), (
        "docs/guides.md differs from mmx serve --help=guides"
    )
    for name in ASCEND_VARIABLES:
        assert f"| `{name}` |" in text
