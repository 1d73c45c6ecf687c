"""With ``deterministic`` the engine's invariants hold on a GPU in bf16, on the kernels of the real shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.prompts import random_prompt
from mmx import LLM, SamplingParams
from mmx.model_config import load_model_config
from mmx.protocol import Abort, Submit
from mmx.runner.kv_pool import page_bytes
from models.tiny import write_tiny_checkpoint
from unit.consistency import check_scheduler

pytestmark = pytest.mark.cuda

# Heads and pages of the models; M3's prompts reach beyond 16 blocks of 128 tokens.
SHAPE: dict[str, Any] = {
    "hidden_size": 512,
    "head_dim": 128,
    "rotary_dim": 64,
    "max_position_embeddings": 8192,
    "intermediate_size": 256,
    "num_local_experts": 16,
    "num_experts_per_tok": 4,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "m2": SHAPE | {"num_attention_heads": 12, "num_key_value_heads": 2},
    "m3": SHAPE
    | {"num_attention_heads": 32, "num_key_value_heads": 2, "dense_intermediate_size": 512}
    | {"shared_intermediate_size": 256, "sparse": {"sparse_topk_blocks": 16, "sparse_block_size": 128}},
}
LENGTHS = [1, 7, 127, 129, 300, 1000, 6000, 2500]
NUM_TOKENS = 12


@pytest.fixture(scope="module", params=["m2", "m3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("model") / request.param
    return write_tiny_checkpoint(
        target, request.param, torch.bfloat16, seed=5, variant=FAMILIES[request.param]
    )


def make_llm(folder: Path, num_blocks: int = 200, **config: Any) -> LLM:
    pool = num_blocks * page_bytes(load_model_config(folder), torch.bfloat16)
    settings = {"max_num_seqs": 40, "deterministic": True, "kv_cache_bytes": pool} | config
    return LLM(str(folder), device="cuda", skip_tokenizer_init=True, **settings)


def tokens(llm: LLM, prompts: list[list[int]]) -> list[list[int]]:
    params = [
        SamplingParams(temperature=float(i % 2), seed=i, max_tokens=NUM_TOKENS, ignore_eos=True, top_p=0.95)
        for i in range(len(prompts))
    ]
    results = llm.generate(prompts, params, use_tqdm=False)
    assert llm.stats().num_free_blocks == llm.stats().num_blocks
    return [result.token_ids for result in results]


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return [random_prompt(length, seed=length) for length in LENGTHS]


@pytest.fixture(scope="module")
def alone(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    llm = make_llm(folder, enable_prefix_caching=False, max_num_batched_tokens=8192)
    found = []
    for i in range(len(prompts)):
        params = SamplingParams(
            temperature=float(i % 2), seed=i, max_tokens=NUM_TOKENS, ignore_eos=True, top_p=0.95
        )
        found.append(llm.generate([prompts[i]], params, use_tqdm=False)[0].token_ids)
    return found


@pytest.mark.parametrize(
    "config",
    [
        {"enable_prefix_caching": False},
        {"enable_prefix_caching": False, "max_num_batched_tokens": 100},
        {"enable_prefix_caching": False, "max_num_batched_tokens": 700},
        {"enable_prefix_caching": False, "enforce_eager": True, "async_scheduling": False},
        {},
    ],
    ids=["batched", "chunked", "long-chunks", "plain", "cached"],
)
def test_no_token_depends_on_chunks_hits_or_mates(
    folder: Path, prompts: list[list[int]], alone: list[list[int]], config: dict[str, Any]
) -> None:
    llm = make_llm(folder, **config)
    assert tokens(llm, prompts) == alone
    assert tokens(llm, prompts) == alone


def test_no_token_depends_on_a_preemption(folder: Path) -> None:
    prompts = [random_prompt(128 - 2 - i, seed=i) for i in range(4)]
    expected = tokens(make_llm(folder), prompts)
    tight = make_llm(folder, num_blocks=5, max_model_len=256)
    assert tokens(tight, prompts) == expected
    assert tight.stats().num_preemptions > 0


def test_no_token_depends_on_a_partial_hit(folder: Path, prompts: list[list[int]]) -> None:
    """Prompts that share 127, 128, 129 and 256 tokens with one that is cached: pages hold 128."""
    stem = prompts[-1]
    forks = [stem[:common] + random_prompt(20, seed=common) for common in (127, 128, 129, 256)]
    cold = make_llm(folder, enable_prefix_caching=False)
    expected = [tokens(cold, [fork])[0] for fork in forks]
    warm = make_llm(folder)
    tokens(warm, [stem])
    params = SamplingParams(temperature=0.0, seed=0, max_tokens=NUM_TOKENS, ignore_eos=True, top_p=0.95)
    results = [warm.generate([fork], params, use_tqdm=False)[0] for fork in forks]
    assert [result.token_ids for result in results] == expected
    assert [result.num_cached_tokens for result in results] == [0, 128, 128, 256]


def test_no_token_depends_on_an_abort(folder: Path, prompts: list[list[int]], alone: list[list[int]]) -> None:
    """Requests end in the middle of steps that are in flight; their pages come back, later ones are right."""
    llm = make_llm(folder, max_num_batched_tokens=300)
    engine, channel = llm._engine, llm._channel
    names = [str(i) for i in range(len(prompts))]
    for num_steps in (1, 2, 4, 7, 11):
        channel.inbox += [
            Submit(request_id=name, prompt_token_ids=prompt, params=SamplingParams(max_tokens=NUM_TOKENS))
            for name, prompt in zip(names, prompts, strict=True)
        ]
        for _ in range(num_steps):
            engine.step()
        channel.inbox.append(Abort(request_ids=names))
        while channel.inbox or engine.scheduler.has_work:
            engine.step()
        check_scheduler(engine.scheduler)
        assert llm.stats().num_free_blocks == llm.stats().num_blocks
        channel.outbox.clear()
    assert tokens(llm, prompts) == alone


def test_no_token_depends_on_a_batch_of_40(folder: Path) -> None:
    prompts = [random_prompt(1 + (37 * i) % 300, seed=100 + i) for i in range(40)]
    llm = make_llm(folder, enable_prefix_caching=False)
    single = []
    for i, prompt in enumerate(prompts):
        params = SamplingParams(
            temperature=float(i % 2), seed=i, max_tokens=NUM_TOKENS, ignore_eos=True, top_p=0.95
        )
        single.append(llm.generate([prompt], params, use_tqdm=False)[0].token_ids)
    assert tokens(llm, prompts) == single


def test_a_prompt_that_is_nan_from_its_first_layer_on_fails_alone(
    folder: Path, prompts: list[list[int]], alone: list[list[int]]
) -> None:
    """No kernel trips over it: routers, selectors and attention see nothing but NaN in its rows."""
    llm = make_llm(folder)
    runner = llm._engine.runner
    used = {*prompts[2], *prompts[3], *alone[2], *alone[3]}
    poison = next(i for i in range(256) if i not in used)
    runner.model.embed.weight[poison] = float("nan")  # type: ignore[attr-defined]
    mates = [prompts[2], prompts[3]]
    with pytest.raises(RuntimeError, match="logits are not finite"):
        tokens(llm, [*mates, [poison] * 2500])
    params = [SamplingParams(temperature=0.0, seed=2, max_tokens=NUM_TOKENS, ignore_eos=True, top_p=0.95)]
    assert llm.generate(mates[:1], params, use_tqdm=False)[0].token_ids == alone[2]
