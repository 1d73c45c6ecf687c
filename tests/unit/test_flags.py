"""The table of flags: every spelling, source and refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmx.server.flag_help import help_markdown, help_text
from mmx.server.flag_kinds import BOOL, FlagError
from mmx.server.flags import FLAGS
from mmx.server.settings import describe, effective, load_config


def refusal(argv: list[str], environ: dict[str, str] | None = None) -> FlagError:
    with pytest.raises(FlagError) as caught:
        load_config(argv, environ or {})
    return caught.value


def test_defaults() -> None:
    config = load_config([], {})
    assert (config.http.host, config.http.port) == ("127.0.0.1", 8000)
    assert config.engine.model == ""
    assert config.engine.max_num_seqs == 64
    assert config.engine.enable_prefix_caching is True
    assert config.http.max_body_bytes == 256 << 20
    assert config.notes == ()
    assert describe(config) == []


def test_hyphen_underscore_and_equals_are_one() -> None:
    for argv in (
        ["m", "--max-num-seqs", "3"],
        ["m", "--max_num_seqs", "3"],
        ["m", "--max-num-seqs=3"],
        ["--max_num_seqs=3", "m"],
    ):
        config = load_config(argv, {})
        assert (config.engine.model, config.engine.max_num_seqs) == ("m", 3)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--max_batch_size", "5"], ("engine", "max_num_seqs", 5)),
        (["--max-running-requests", "5"], ("engine", "max_num_seqs", 5)),
        (["--max_num_tokens", "8k"], ("engine", "max_num_batched_tokens", 8192)),
        (["--max_seq_len", "128k"], ("engine", "max_model_len", 131072)),
        (["--context-length", "1M"], ("engine", "max_model_len", 1 << 20)),
        (["--disable-radix-cache"], ("engine", "enable_prefix_caching", False)),
        (["--tool_parser", "minimax_m3"], ("answer", "tool_call_parser", "minimax_m3")),
        (["--random-seed", "-4"], ("engine", "seed", -4)),
        (["--model-path", "m"], ("engine", "model", "m")),
        (["--served_model_name", "a", "b"], ("model", "served_names", ("a", "b"))),
        (["--api-key", "k1", "k2", "--port", "1"], ("http", "api_keys", ("k1", "k2"))),
        (["--load-format", "dummy"], ("engine", "seed", 0)),
    ],
)
def test_other_programs_spellings(argv: list[str], expected: tuple[str, str, object]) -> None:
    group, field, value = expected
    assert getattr(getattr(load_config(argv, {}), group), field) == value


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        (["--enable-prefix-caching"], True),
        (["--no-enable-prefix-caching"], False),
        (["--enable_prefix_caching", "false"], False),
        (["--enable-prefix-caching=false"], False),
        (["--enable-prefix-caching", "true", "model"], True),
        (["--no-enable-prefix-caching", "model"], False),
        (["--no-disable-radix-cache"], True),
        (["--disable-radix-cache=false"], True),
    ],
)
def test_booleans(argv: list[str], value: bool) -> None:
    assert load_config(argv, {}).engine.enable_prefix_caching is value


def test_json_flag_as_text_file_and_parts(tmp_path: Path) -> None:
    file = tmp_path / "kwargs.json"
    file.write_text('{"a": {"b": 1}}')
    name = "--default-chat-template-kwargs"
    for argv in ([name, '{"a": {"b": 1}}'], [f"{name}=@{file}"], [f"{name}.a.b", "1"]):
        assert load_config(argv, {}).model.default_chat_template_kwargs == {"a": {"b": 1}}
    both = load_config([f"{name}.a.b=1", f"{name}.mode=fast"], {})
    assert both.model.default_chat_template_kwargs == {"a": {"b": 1}, "mode": "fast"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--max-num-seq", "3"], ["'--max-num-seq'", "did you mean --max-num-seqs?"]),
        (["--prot=1"], ["'--prot'", "did you mean --port?"]),
        (["-p", "1"], ["unknown flag '-p'"]),
        (["--dtype", "bfloat61"], ["--dtype", "auto, bfloat16, float32", "did you mean bfloat16?"]),
        (["--port", "http"], ["--port", "an integer", "'http'"]),
        (["--port"], ["--port", "expected a value"]),
        (["--port", "70000"], ["--port", "0 to 65535"]),
        (["--max-model-len", "12q"], ["--max-model-len", "suffix k, M or G"]),
        (["--max-model-len", "0.3k"], ["suffix k, M or G"]),
        (["--shutdown-timeout", "nan"], ["finite number"]),
        (["--enable-prefix-caching=maybe"], ["true or false"]),
        (["a", "b"], ["'b'", "one model"]),
        (["--default-chat-template-kwargs", "[1]"], ["a JSON object"]),
        (["--default-chat-template-kwargs", "{"], ["a JSON object"]),
        (["--default-chat-template-kwargs", "@/nowhere.json"], ["readable file"]),
        (["--overload-status", "500"], ["429 or 503"]),
        (["--stream-interval", "0"], ["1 to 1000"]),
    ],
)
def test_wrong_usage_exits_2_in_one_sentence(argv: list[str], words: list[str]) -> None:
    error = refusal(argv)
    assert error.exit_code == 2
    for word in words:
        assert word in str(error)
    assert "\n" not in str(error)


def test_engine_limits_exit_3() -> None:
    error = refusal(["--max-num-seqs", "0"])
    assert error.exit_code == 3
    assert "max_num_seqs must be at least 1" in str(error)


def test_precedence_flag_environment_file_default(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("port: 1\nhost: 0.0.0.0\nmax_num_seqs: 7\n")
    argv = ["--config", str(file), "--port", "3"]
    config = load_config(argv, {"MMX_PORT": "2", "MMX_HOST": "::1"})
    assert (config.http.port, config.http.host, config.engine.max_num_seqs) == (3, "::1", 7)
    assert config.origins["port"] == "flag"
    assert config.origins["host"] == "environment MMX_HOST"
    assert config.origins["max_num_seqs"] == f"file {file}"
    assert config.origins["seed"] == "default"
    assert any("--port on the command line overrides port" in note for note in config.notes)


def test_repeated_flag_last_one_wins_with_a_note() -> None:
    config = load_config(["--port", "1", "--port", "2"], {})
    assert config.http.port == 2
    assert any("--port is given twice" in note for note in config.notes)


def test_flags_without_effect_are_named() -> None:
    config = load_config(["--trust-remote-code", "--backend", "pytorch", "--swap-space", "4"], {})
    assert len(config.notes) == 3
    assert all("has no effect" in note for note in config.notes)


def test_environment() -> None:
    config = load_config(
        [], {"VLLM_API_KEY": "a", "MMX_ENABLE_PREFIX_CACHING": "0", "MMX_SERVED_MODEL_NAME": "x y"}
    )
    assert config.http.api_keys == ("a",)
    assert config.engine.enable_prefix_caching is False
    assert config.model.served_names == ("x", "y")
    error = refusal([], {"MMX_PORT": "many"})
    assert error.exit_code == 3
    assert "MMX_PORT" in str(error)


def test_yaml_names_lists_and_nested_keys(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(
        "max_batch_size: 256\n"
        "max-num-batched-tokens: 8192\n"
        "max_seq_len: 64k\n"
        "kv_cache_config:\n  enable_block_reuse: false\n"
        "served_model_name: [a, b]\n"
        "default_chat_template_kwargs: {thinking_mode: disabled}\n"
        "backend: pytorch\n"
    )
    config = load_config(["--extra_llm_api_options", str(file)], {})
    assert config.engine.max_num_seqs == 256
    assert config.engine.max_num_batched_tokens == 8192
    assert config.engine.max_model_len == 65536
    assert config.engine.enable_prefix_caching is False
    assert config.model.served_names == ("a", "b")
    assert config.model.default_chat_template_kwargs == {"thinking_mode": "disabled"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port: 1\nmax_batch_sizes: 3\n", [":2:1:", "'max_batch_sizes'", "did you mean max_batch_size?"]),
        ("kv_cache_config:\n  enable_block_reus: true\n", [":2:3:", "kv_cache_config.enable_block_reus"]),
        ("port: 1\nport: 2\n", [":2:1:", "given twice"]),
        ("port: 1\nmax_num_seqs: 1\nmax_batch_size: 2\n", [":3:1:", "a second time"]),
        ("port: yes\n", [":1:1:", "expected int"]),
        ("enable_prefix_caching: 3\n", ["expected bool"]),
        ("dtype: fp4\n", ["auto, bfloat16, float32"]),
        ("surprise: {a: 1}\n", ["unknown key 'surprise'"]),
        ("- 1\n", ["one mapping"]),
        ("a: [\n", ["not valid YAML"]),
    ],
)
def test_yaml_faults_exit_3_with_their_place(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(text)
    error = refusal(["--config", str(file)])
    assert error.exit_code == 3
    for word in [str(file), *words]:
        assert word in str(error)


def test_missing_yaml_file() -> None:
    error = refusal(["--config", "/nowhere/x.yaml"])
    assert (error.exit_code, "/nowhere/x.yaml" in str(error)) == (3, True)


def test_every_target_exists_and_help_names_every_flag() -> None:
    config = load_config([], {})
    text, table = help_text(), help_markdown()
    for flag in FLAGS.flags.values():
        assert f"  {flag.spelling}" in text
        assert f"| `{flag.spelling}` |" in table
        if flag.target:
            group, field = flag.target.split(".")
            assert hasattr(getattr(config, group), field)


@pytest.mark.parametrize("flag", [f for f in FLAGS.flags.values() if f.kind is BOOL], ids=lambda f: f.name)
def test_every_boolean_has_its_opposite(flag) -> None:
    assert load_config([f"--no-{flag.name}"], {}).origins[flag.name] == "flag"


def test_effective_masks_keys() -> None:
    shown = effective(load_config(["--api-key", "secret"], {}))
    assert shown["api_key"] == {"value": "***", "origin": "flag"}
    assert "secret" not in str(shown)
