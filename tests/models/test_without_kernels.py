"""A device without a single kernel serves the same tokens, through the references."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mmx import LLM, SamplingParams
from mmx.ops._fallback import fallback
from mmx.ops._lib import op_names
from models.tiny import write_tiny_checkpoint

PROMPTS = [[1, 2, 3], list(range(40, 80))]
PARAMS = [
    SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True),
    SamplingParams(max_tokens=5, seed=1, logprobs=2, repetition_penalty=1.2, ignore_eos=True),
]


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """References in the place of all kernels; which of them have run."""
    ran: set[str] = set()
    library = torch.library.Library("mmx", "IMPL")
    for op in op_names():

        def run(*args: object, op: str = op) -> None:
            ran.add(op)
            fallback(op)(*args)

        library.impl(op, run, "CPU", allow_override=True)
    yield ran
    library._destroy()


def answers(folder: Path) -> list[tuple[object, ...]]:
    llm = LLM(str(folder), device="cpu", dtype="float32", skip_tokenizer_init=True, kv_cache_bytes=1 << 20)
    return [
        (result.token_ids, [top.top_ids for top in result.logprobs or ()])
        for result in llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    ]


@pytest.mark.filterwarnings("ignore:Warning only once for all operators")
@pytest.mark.parametrize(("family", "num_ops"), [("m2", 12), ("m3", 14)])
def test_references_serve_the_tokens_of_the_kernels(
    family: str, num_ops: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = write_tiny_checkpoint(tmp_path, family, torch.float32)
    expected = answers(folder)
    ran = request.getfixturevalue("no_kernels")
    assert answers(folder) == expected
    assert len(ran) >= num_ops
