"""The least work that reaches each Hopper kernel of attention: for compute-sanitizer's slow tools."""

from __future__ import annotations

import pytest

from ops.paged import make_batch
from ops.test_attention_sm90 import CUDA, PAGE, random_blocks
from ops.test_pages_sm90 import PAGES, Inputs

pytestmark = pytest.mark.cuda

DENSE = {
    "decode": [(1, 700), (2, 130)],  # two parts, that a second kernel merges
    "prompts": [(20, 300), (3, 40)],
    "long-prompt": [(20, 1200)],  # parts, one after the other
}
SPARSE = {
    "one-token": ([(1, 2100)], (16, 1), 16),  # as many thread blocks as pages
    "decode": ([(1, 700), (2, 130)], (32, 2), 16),
    "drafts": ([(2, 2100), (1, 130)], (32, 2), 16),  # the last token is not the one of its sequence's number
    "many": ([(1, 60 + 7 * i) for i in range(70)], (32, 2), 4),  # thread blocks that take several tokens
    "neighbours": ([(260, 700)], (16, 1), 4),  # tiles of tokens that share pages
    "lists": ([(256, 6000)], (16, 1), 8),  # tokens listed per page
}


@pytest.mark.parametrize("fixed_split", [False, True], ids=["any", "fixed"])
@pytest.mark.parametrize("heads", [(32, 2), (6, 1)], ids=["16", "6"])
@pytest.mark.parametrize("pages", PAGES)
@pytest.mark.parametrize("lens", DENSE.values(), ids=DENSE.keys())
def test_dense(lens, pages, heads, fixed_split, rng):
    batch = make_batch(lens, PAGE, rng)
    Inputs(batch, *heads, pages, rng).check(batch, None, fixed_split=fixed_split)


@pytest.mark.parametrize("fixed_split", [False, True], ids=["any", "fixed"])
@pytest.mark.parametrize("pages", PAGES)
@pytest.mark.parametrize(("lens", "heads", "topk"), SPARSE.values(), ids=SPARSE.keys())
def test_sparse(lens, heads, topk, pages, fixed_split, rng):
    batch = make_batch(lens, PAGE, rng)
    inputs = Inputs(batch, *heads, pages, rng)
    inputs.check(batch, random_blocks(batch, heads[1], topk, rng).to(CUDA), fixed_split=fixed_split)
