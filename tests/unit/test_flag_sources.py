"""Presets, several files, keys inside mappings, refusals, and what is compared with the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmx.config import ParallelConfig
from mmx.model_path import demo_model_path
from mmx.server.agreement import check_agreement
from mmx.server.flag_kinds import FlagError
from mmx.server.flag_yaml import preset_names
from mmx.server.settings import CheckpointSettings, load_config
from unit.test_model_config import M2

DEMO = demo_model_path()


def refusal(argv: list[str], environ: dict[str, str] | None = None) -> FlagError:
    with pytest.raises(FlagError) as caught:
        load_config(argv, environ or {})
    assert "\n" not in str(caught.value)
    return caught.value


def write(tmp_path: Path, text: str, name: str = "options.yaml") -> str:
    file = tmp_path / name
    file.write_text(text)
    return str(file)


def test_presets_ship_with_the_package() -> None:
    assert preset_names() == [
        "minimax-m2-latency",
        "minimax-m2-throughput",
        "minimax-m3-latency",
        "minimax-m3-throughput",
    ]


@pytest.mark.parametrize("name", preset_names())
def test_presets_mean_something_in_every_key(name: str) -> None:
    config = load_config(["--config", name], {})
    assert config.notes == ()
    assert config.engine.enable_prefix_caching is True
    assert config.answer.reasoning_parser == "minimax_" + name.split("-")[1]
    assert config.origins["max_num_seqs"] == f"preset {name}"
    assert config.answer.stream_interval == (10 if "throughput" in name else 1)


@pytest.mark.parametrize(
    "argv",
    [
        ["--config", "minimax-m3-throughput", "--extra_llm_api_options"],
        ["--extra_llm_api_options", "minimax-m3-throughput", "--config"],
    ],
)
def test_precedence_flag_environment_file_preset(tmp_path: Path, argv: list[str]) -> None:
    file = write(tmp_path, "max_num_seqs: 3\nmax_num_batched_tokens: 512\nport: 5\n")
    command = [*argv, file, "--port", "1"]
    config = load_config(command, {"MMX_PORT": "2", "MMX_MAX_NUM_SEQS": "4"})
    assert (config.http.port, config.origins["port"]) == (1, "flag")
    assert (config.engine.max_num_seqs, config.origins["max_num_seqs"]) == (4, "environment MMX_MAX_NUM_SEQS")
    assert (config.engine.max_num_batched_tokens, config.origins["max_num_batched_tokens"]) == (
        512,
        f"file {file}",
    )
    assert (config.answer.stream_interval, config.origins["stream_interval"]) == (
        10,
        "preset minimax-m3-throughput",
    )


def test_of_two_files_the_options_win(tmp_path: Path) -> None:
    base = write(tmp_path, "port: 1\nhost: ::1\n", "base.yaml")
    over = write(tmp_path, "port: 2\n", "over.yaml")
    config = load_config(["--config", base, "--extra_llm_api_options", over], {})
    assert (config.http.port, config.http.host) == (2, "::1")


def test_a_file_of_that_name_hides_the_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "port: 7\n", "minimax-m3-latency")
    monkeypatch.chdir(tmp_path)
    assert load_config(["--config", "minimax-m3-latency"], {}).http.port == 7


def test_unknown_preset_names_the_nearest() -> None:
    error = refusal(["--config", "minimax-m3-latence"])
    assert error.exit_code == 3
    assert "did you mean minimax-m3-latency?" in str(error)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sparse_attention_config:\n  algoritm: x\n", [":2:3:", "'algoritm'", "did you mean algorithm?"]),
        ("moe_config: {backend: A, backend: B}\n", [":1:26:", "'moe_config.backend' is given twice"]),
        ("torch_compile_config:\n  a: {b: 1, b: 2}\n", [":2:13:", "'torch_compile_config.a.b'"]),
        ("cuda_graph_config:\n  enable_paddin: true\n", [":2:3:", "cuda_graph_config.enable_padding?"]),
        ("kv_cache_config: 3\n", [":1:1:", "'kv_cache_config' must be a mapping"]),
        ("kv_cache_config:\n  dtype: nvfp4\n", ["--kv-cache-dtype nvfp4", "pages can not hold this type"]),
        ("pipeline_parallel_size: 2\n", ["pipeline parallelism is not built yet"]),
        ("moe_cluster_parallel_size: 2\n", ["--moe-cluster-parallel-size 2"]),
        ("scheduler_config: {capacity_scheduler_policy: GUARANTEED_NO_EVICT}\n", ["MAX_UTILIZATION"]),
        ("cache_transceiver_config: {backend: UCX}\n", ["prefill and decode from separate processes"]),
        ("sparse_attention_config: {algorithm: dsa}\n", ["algorithm must be minimax_m3"]),
        ("kv_cache_config: {host_cache_size: 1000000}\n", ["--kv-offloading-size", "host"]),
    ],
)
def test_yaml_refusals(tmp_path: Path, text: str, words: list[str]) -> None:
    file = write(tmp_path, text)
    error = refusal(["--config", file])
    assert error.exit_code == 3
    for word in [file, *words]:
        assert word in str(error)


def test_null_means_default_and_no_graphs(tmp_path: Path) -> None:
    file = write(tmp_path, "cuda_graph_config: null\nkv_cache_config: null\nmax_seq_len: null\n")
    config = load_config(["--config", file], {})
    assert config.engine.enforce_eager is True
    assert config.engine.max_model_len is None
    assert config.engine.enable_prefix_caching is True


@pytest.mark.parametrize(
    ("argv", "flag"),
    [
        (["-pp", "2"], "--pipeline-parallel-size 2"),
        (["-pp=2"], "--pipeline-parallel-size 2"),
        (["-pp", "0"], "--pipeline-parallel-size 0"),
        (["--pp_size", "8"], "--pipeline-parallel-size 8"),
        (["--enable-eplb"], "--enable-eplb true"),
        (["--api-server-count", "2"], "--api-server-count 2"),
        (["--kv-cache-dtype", "fp8_e5m2"], "--kv-cache-dtype fp8_e5m2"),
        (["--quantization", "mxfp8"], "--quantization mxfp8"),
        (["-q", "modelslim"], "--quantization modelslim"),
        (["-cc.cudagraph_mode=SOME"], "--compilation-config"),
        (["--kv-transfer-config", '{"kv_role": "kv_producer"}'], "--kv-transfer-config"),
    ],
)
def test_what_is_not_built_is_refused_by_name(argv: list[str], flag: str) -> None:
    error = refusal(argv)
    assert error.exit_code == 3
    assert str(error).startswith(f"refused: {flag}")


def test_the_layout_reaches_the_engine() -> None:
    config = load_config(["-tp", "4", "-dp=2", "-ep", "-pcp", "2", "--enable-dp-attention"], {})
    parallel = config.engine.parallel
    assert (parallel.tensor_parallel_size, parallel.data_parallel_size) == (4, 2)
    assert (parallel.expert_parallel, parallel.prefill_context_parallel_size) == (True, 2)
    assert parallel.attention_dp and not parallel.sequence_parallel_norm
    assert parallel.world_size == 16
    assert load_config([], {}).engine.parallel == ParallelConfig()
    given = ["--additional-config", '{"enable_flashcomm1": true, "enable_cpu_binding": true, "other": 1}']
    config = load_config(given, {})
    assert config.parallel.sequence_parallel_norm and config.launch.bind_cpus
    assert config.notes == ("--additional-config has no effect here: mmx has nothing for other",)
    error = refusal(["-tp", "0"])
    assert (error.exit_code, str(error)) == (3, "tensor_parallel_size must be more than 0, got 0")


def test_short_flags_are_not_long_ones_and_long_ones_not_short() -> None:
    assert refusal(["--tpp", "1"]).exit_code == 2
    assert refusal(["-port", "1"]).exit_code == 2
    assert load_config(["-tp", "1", "-cc.cudagraph_mode", "NONE"], {}).engine.enforce_eager is True


def test_graph_modes() -> None:
    config = load_config(["--compilation-config", '{"cudagraph_mode": "NONE"}'], {})
    assert config.engine.enforce_eager is True
    assert config.origins["enforce_eager"] == "flag"
    config = load_config(["-cc", '{"cudagraph_mode": "PIECEWISE", "level": 3}'], {})
    assert config.engine.enforce_eager is False
    (note,) = config.notes
    assert "FULL_DECODE_ONLY" in note and "level has no effect" in note


def test_json_flags_refuse_unknown_keys_and_take_files_and_parts(tmp_path: Path) -> None:
    error = refusal(["-sc", '{"methods": "eagle3"}'])
    assert error.exit_code == 3 and "did you mean method?" in str(error)
    file = write(tmp_path, json.dumps({"method": "ngram"}), "draft.json")
    for argv in (["-sc", f"@{file}"], ["-sc.method", "ngram"], ["--speculative_config.method=ngram"]):
        assert any("drafts are not used yet" in note for note in load_config(argv, {}).notes)


def said(**more: object) -> CheckpointSettings:
    fields: dict[str, object] = {"quantization": "auto", "block_size": None, "sparse_attention": {}}
    return CheckpointSettings(**{**fields, **more})  # type: ignore[arg-type]


def test_agreement_with_the_demo() -> None:
    check_agreement(said(), Path("/nowhere"))
    geometry = {"algorithm": "minimax_m3", "sparse_block_size": 128}
    check_agreement(said(block_size=128, sparse_attention=geometry), DEMO)


def test_agreement_with_m2(tmp_path: Path) -> None:
    write(tmp_path, json.dumps(M2), "config.json")
    check_agreement(said(quantization="fp8", block_size=128), tmp_path)
    with pytest.raises(FlagError, match="the checkpoint is not an M3"):
        check_agreement(said(sparse_attention={"algorithm": "minimax_m3"}), tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (said(quantization="fp8"), ["--quantization fp8", "not FP8"]),
        (said(quantization="ascend"), ["--quantization ascend", "quant_model_description.json"]),
        (said(block_size=64), ["--block-size", "expected 128", "got 64"]),
        (said(sparse_attention={"sparse_block_size": 64}), ["sparse_block_size", "has 128", "got 64"]),
    ],
)
def test_disagreement_with_the_demo(settings: CheckpointSettings, words: list[str]) -> None:
    with pytest.raises(FlagError) as caught:
        check_agreement(settings, DEMO)
    assert caught.value.exit_code == 3
    for word in words:
        assert word in str(caught.value)
