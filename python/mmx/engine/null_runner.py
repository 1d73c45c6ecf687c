"""A runner without a model: deterministic pseudo tokens, at once or after a given time per step.

For tests and benches of everything around the model. ``EngineConfig.model`` is an optional checkpoint
folder (its vocabulary size and end tokens are used) and an optional query of ``NullOptions`` fields:
``"null"``, ``"null?step_seconds=0.01&vocab_size=512"``, ``"/path/to/model?step_seconds=0.01"``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from mmx.batch import SampledToken, ScheduledBatch, ScheduledSeq
from mmx.config import EngineConfig
from mmx.errors import ConfigError
from mmx.grammar.constraints import Masks, with_masks
from mmx.model_config import load_eos_token_ids
from mmx.protocol import TokenLogprobs


class NullOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``step_seconds`` is slept in every step, ``load_seconds`` before the engine is ready."""

    step_seconds: float = 0.0
    load_seconds: float = 0.0
    vocab_size: int = 256
    eos_token_id: int | None = None
    num_blocks: int = 4096
    block_size: int = 128
    max_model_len: int = 131072


class Done(NamedTuple):
    """A step that was computed when it was launched."""

    sampled: list[SampledToken]

    def result(self) -> list[SampledToken]:
        return self.sampled


class NullRunner:
    """Token t+1 is a fixed function of token t, its position and the request's seed; never an end
    token. Every logprob is that of a uniform distribution."""

    family = "null"
    device = "cpu"
    dtype = "float32"
    asynchronous = False
    max_model_len_reason = "null runner"

    def __init__(self, options: NullOptions, eos_token_ids: tuple[int, ...]) -> None:
        self.num_blocks = options.num_blocks
        self.block_size = options.block_size
        self.max_model_len = min(options.max_model_len, options.num_blocks * options.block_size)
        self.vocab_size = options.vocab_size
        self.eos_token_ids = eos_token_ids
        self._step_seconds = options.step_seconds

    def launch(self, batch: ScheduledBatch, masks: Masks) -> Done:
        seqs = with_masks(batch, masks).seqs
        if self._step_seconds:
            time.sleep(self._step_seconds)
        return Done([self._sample(seq) for seq in seqs if seq.samples])

    def _sample(self, seq: ScheduledSeq) -> SampledToken:
        position = seq.start + len(seq.token_ids)
        token_id = (seq.token_ids[-1] * 1103515245 + position * 12345 + seq.seed) % self.vocab_size
        while token_id in self.eos_token_ids and seq.mask is None:
            token_id = (token_id + 1) % self.vocab_size
        if seq.mask is not None:
            token_id = self._next_allowed(token_id, seq.mask)
        logprobs = None
        if (num_top := seq.params.logprobs) is not None:
            uniform = -math.log(self.vocab_size)
            logprobs = TokenLogprobs(uniform, token_id + 1, list(range(num_top)), [uniform] * num_top)
        return SampledToken(request_id=seq.request_id, token_id=token_id, logprobs=logprobs)

    def _next_allowed(self, token_id: int, mask: bytes) -> int:
        for step in range(self.vocab_size):
            i = (token_id + step) % self.vocab_size
            if mask[i // 8] >> (i % 8) & 1:
                return i
        return -1


def build_runner(config: EngineConfig, progress: Callable[[str, float], None]) -> NullRunner:
    """The null runner that ``config.model`` describes."""
    name, _, query = config.model.partition("?")
    fields: dict[str, Any] = dict(parse_qsl(query, keep_blank_values=True))
    eos_token_ids: tuple[int, ...] = ()
    if (Path(name) / "config.json").is_file():
        fields.setdefault("vocab_size", _vocab_size(Path(name)))
        eos_token_ids = load_eos_token_ids(Path(name))
    if config.max_model_len is not None:
        fields["max_model_len"] = config.max_model_len
    try:
        options = msgspec.convert(fields, NullOptions, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"model {config.model!r}: {error}") from None
    if options.eos_token_id is not None:
        eos_token_ids = (options.eos_token_id,)
    for tenth in range(10):
        progress("load", tenth / 10)
        time.sleep(options.load_seconds / 10)
    progress("load", 1.0)
    return NullRunner(options, eos_token_ids)


def _vocab_size(folder: Path) -> int:
    config = msgspec.json.decode((folder / "config.json").read_bytes(), type=dict[str, Any])
    return int(config.get("text_config", config)["vocab_size"])
