"""Pages of e4m3 through the whole engine on a GPU against the same engine on the CPU.

A value near the middle of two codes is stored as the other one when its last bits differ, so logits are
compared within what a change of the embeddings by a few such bits does to the CPU's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmx import LLM, SamplingParams
from models.harness import all_logits, random_ids, tiny_runner
from models.tiny import write_tiny_checkpoint

pytestmark = pytest.mark.cuda

# Every token takes every expert: near ties of the router would turn rounding into other experts.
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 4}
# Heads and pages of the models, the shapes of the Hopper kernels.
REAL: dict[str, Any] = EXPERTS | {
    "hidden_size": 256,
    "head_dim": 128,
    "rotary_dim": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
}
SPARSE = {"sparse_topk_blocks": 4, "sparse_block_size": 128}
SHAPES: dict[str, tuple[Any, dict[str, Any], torch.dtype]] = {
    "m2-tiny": ("m2", EXPERTS, torch.float32),
    "m3-tiny": ("m3", EXPERTS, torch.float32),
    "m2-real": ("m2", REAL | {"num_attention_heads": 12}, torch.bfloat16),
    "m3-real": ("m3", REAL | {"num_attention_heads": 32, "sparse": SPARSE}, torch.bfloat16),
}
FP8 = {"kv_cache_dtype": "fp8", "index_kv_dtype": "fp8"}
# Beyond a page of M3's tiny form (8), of the others (128), and beyond topk x block.
LENGTHS = (1, 7, 129, 300, 700)
NUM_TOKENS = 20
# Last bits by which embeddings are changed: about what fp32 sums in another order differ by; one of bf16.
BITS = {torch.float32: 16, torch.bfloat16: 1}


@pytest.fixture(scope="module", params=SHAPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, variant, dtype = SHAPES[request.param]
    target = tmp_path_factory.mktemp("model") / request.param
    return write_tiny_checkpoint(target, family, dtype, seed=3, variant=variant)


@pytest.fixture(scope="module")
def expected(folder: Path) -> torch.Tensor:
    return all_logits(tiny_runner(folder, **FP8), random_ids(LENGTHS[-1], seed=1))


@pytest.fixture(scope="module")
def others(folder: Path) -> list[torch.Tensor]:
    """Logits on the CPU of embeddings that differ in their last bits."""
    found = []
    for seed in range(3):
        runner = tiny_runner(folder, **FP8)
        weight = runner.model.embed.weight
        signs = torch.randint(-1, 2, weight.shape, generator=torch.Generator().manual_seed(seed))
        change = BITS[weight.dtype] * torch.finfo(weight.dtype).eps * signs
        weight.data = (weight.double() * (1 + change)).to(weight.dtype)
        found.append(all_logits(runner, random_ids(LENGTHS[-1], seed=1)))
    return found


@pytest.mark.parametrize("chunk", [1 << 30, 200])
def test_logits_are_those_of_the_cpu(
    folder: Path, expected: torch.Tensor, others: list[torch.Tensor], chunk: int
) -> None:
    runner = tiny_runner(folder, device="cuda", enforce_eager=True, **FP8)
    assert {cache.k.dtype for cache in runner._caches} == {torch.float8_e4m3fn}
    found = all_logits(runner, random_ids(LENGTHS[-1], seed=1), chunk).cpu()
    budget = 2 * max((other - expected).norm() for other in others)
    assert (found - expected).norm() < budget
    if runner.dtype == "float32":
        wide = all_logits(tiny_runner(folder), random_ids(LENGTHS[-1], seed=1))
        assert (wide - expected).norm() > budget, "pages of the model's own type would have passed"


def test_engine_gives_the_tokens_of_the_cpu_until_a_near_tie(
    folder: Path, expected: torch.Tensor, others: list[torch.Tensor]
) -> None:
    """Greedy, prompts of one token to several pages, cold and with prefix hits, with graphs and without."""
    tie = 2 * max((other - expected).abs().max().item() for other in others)
    prompts = [random_ids(count, seed=count) for count in LENGTHS]
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=2)
    cpu = serve(folder, device="cpu").generate(prompts, params, use_tqdm=False)
    same = total = 0
    for settings in ({}, {"enforce_eager": True, "async_scheduling": False}):
        llm = serve(folder, device="cuda", **settings)
        for _ in range(2):
            for ours, truth in zip(llm.generate(prompts, params, use_tqdm=False), cpu, strict=True):
                pairs = list(zip(ours.token_ids, truth.token_ids, strict=True))
                equal = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
                same, total = same + equal, total + len(pairs)
                if equal < len(pairs):
                    best, second = truth.logprobs[equal].top_logprobs
                    assert best - second < tie, (
                        f"token {equal} of the prompt of {len(truth.prompt_token_ids)}"
                    )
        assert llm.stats().prefix_cache_hits > 0
        assert llm.stats().num_free_blocks == llm.stats().num_blocks
    assert same > total / 2


def test_no_token_depends_on_graphs_overlap_and_prefix_hits(folder: Path) -> None:
    """With ``deterministic``, which fp32 needs not."""
    prompts = [random_ids(count, seed=count) for count in LENGTHS]
    params = [
        SamplingParams(temperature=i % 2, seed=i, max_tokens=NUM_TOKENS, ignore_eos=True)
        for i in range(len(prompts))
    ]
    found = []
    for plain in (False, True):
        settings = {"enforce_eager": plain, "async_scheduling": not plain}
        llm = serve(folder, device="cuda", deterministic=True, **settings)
        for _ in range(2):
            found.append([out.token_ids for out in llm.generate(prompts, params, use_tqdm=False)])
    assert all(tokens == found[0] for tokens in found[1:])


def serve(folder: Path, **settings: Any) -> LLM:
    settings = {"skip_tokenizer_init": True, "kv_cache_bytes": 1 << 26, "max_num_seqs": 8} | settings
    return LLM(str(folder), **settings, **FP8)
