from __future__ import annotations

import pytest
import torch

from cases import load
from mmx import ops
from mmx.ops import reference
from mmx.ops.reference.sampling import kept_weights, uniform
from ops.compare import POISON, assert_close_to_truth, assert_equal, strided

INF = float("inf")

# temperature, top_k, top_p, min_p
FILTERS = [
    (1.0, 0, 1.0, 0.0),
    (0.7, -1, 1.0, 0.0),
    (1.0, 1, 1.0, 0.0),
    (1.0, 5, 1.0, 0.0),
    (1.0, 40, 0.95, 0.0),
    (1.3, 0, 0.9, 0.0),
    (0.5, 0, 1.0, 0.03),
    (2.0, 0, 0.8, 0.01),
    (1.0, 900, 0.9, 0.0),
    (1.0, 5000, 0.99, 1e-4),
    (100.0, 0, 0.5, 0.0),
    (1e-5, 0, 0.9, 0.0),
    (1.0, 3, 1e-6, 0.9),
]


def columns(rows: int, device: torch.device, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> tuple:
    """Sampling columns of ``rows`` equal rows."""
    dtypes = (torch.float32, torch.int32, torch.float32, torch.float32)
    values = zip((temperature, top_k, top_p, min_p), dtypes, strict=True)
    return tuple(torch.full((rows,), value, dtype=dtype, device=device) for value, dtype in values)


def draws(logits: torch.Tensor, filters: tuple, count: int) -> torch.Tensor:
    """``count`` draws of one row of logits, each with its own seed."""
    seeds = torch.arange(count, device=logits.device) * 7919
    rows = logits.expand(count, -1)
    return ops.sample(rows, *columns(count, logits.device, *filters), seeds, torch.zeros_like(seeds))


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("dims", load("sampling", "sample"))
def test_sample(dims, filters, device, rng):
    rows, vocab = dims["num_rows"], dims["vocab"]
    logits = (4 * torch.randn(rows, vocab, generator=rng)).to(device)
    seeds = torch.randint(-(2**62), 2**62, (rows,), generator=rng).to(device)
    steps = torch.randint(0, 2**40, (rows,), generator=rng).to(device)
    args = (*columns(rows, device, *filters), seeds, steps)
    expected = reference.sample(logits, *args)
    assert_equal(ops.sample(logits, *args), expected)
    assert_equal(ops.sample(strided(logits), *args), expected, name="strided")


def test_rows_of_one_batch_have_their_own_settings(device, rng):
    logits = (3 * torch.randn(len(FILTERS) + 1, 997, generator=rng)).to(device)
    settings = [torch.tensor(column, device=device) for column in zip(*FILTERS, (0.0, 0, 1, 0), strict=True)]
    settings[1] = settings[1].int()
    seeds = torch.arange(len(FILTERS) + 1, device=device)
    together = ops.sample(logits, *settings, seeds, seeds + 5)
    for i, one in enumerate(seeds.split(1)):
        alone = ops.sample(logits[i : i + 1], *(s[i : i + 1] for s in settings), one, one + 5)
        assert_equal(alone, together[i : i + 1], name=f"row {i} alone")
    assert_equal(together, reference.sample(logits, *settings, seeds, seeds + 5))
    order = torch.randperm(len(seeds), generator=rng).to(device)
    shuffled = ops.sample(logits[order], *(s[order] for s in settings), seeds[order], seeds[order] + 5)
    assert_equal(shuffled, together[order])


def test_uniform_is_splitmix64():
    # First outputs of the published generator for the seeds 0 and 1234567.
    assert uniform(0, 0) == (0xE220A8397B1DCDAF >> 40) / 2**24
    assert uniform(1234567, 0) == (6457827717110365317 >> 40) / 2**24
    assert uniform(1234567, 1) == (3203168211198807973 >> 40) / 2**24


@pytest.mark.parametrize("filters", [f for f in FILTERS if f[0] >= 0.5], ids=str)
def test_draws_follow_the_kept_distribution(filters, device, rng):
    logits = (1.5 * torch.randn(1, 30, generator=rng)).to(device)
    count = 20000
    ids, weights = kept_weights(logits[0], *columns_as_floats(filters))
    seen = torch.bincount(draws(logits, filters, count), minlength=30).cpu().double()
    assert_equal(seen.nonzero()[:, 0], ids.cpu()[seen[ids.cpu()] > 0], name="ids outside the kept set")
    expected = count * weights.cpu() / weights.sum().cpu()
    common = expected >= 5
    chi2 = ((seen[ids.cpu()] - expected).square() / expected)[common].sum().item()
    freedom = int(common.sum()) - 1
    # Mean + 4 standard deviations of chi-square.
    assert chi2 <= freedom + 4 * (2 * freedom) ** 0.5 + 1e-9


def columns_as_floats(filters: tuple) -> list:
    """The settings as a row of columns carries them: rounded to fp32."""
    return [column.item() for column in columns(1, torch.device("cpu"), *filters)]


def test_draws_of_successive_steps_are_independent(device):
    steps = torch.arange(40001, device=device)
    rows, vocab = len(steps), 4
    logits = torch.zeros(1, vocab, device=device).expand(rows, -1)
    for seed in (0, 1, -5):
        seeds = torch.full_like(steps, seed)
        ids = ops.sample(logits, *columns(rows, device), seeds, steps)
        pairs = torch.bincount(ids[:-1] * vocab + ids[1:], minlength=vocab * vocab).cpu().double()
        expected = (rows - 1) / vocab**2
        assert ((pairs - expected).square() / expected).sum().item() <= 15 + 4 * 30**0.5


def test_draw_is_a_function_of_seed_and_step(device, rng):
    logits = torch.randn(1, 5000, generator=rng).to(device).expand(6, -1)
    seeds = torch.tensor([3, 3, 3, 4, 3, -3], device=device)
    steps = torch.tensor([0, 1, 0, 0, 2**33, 0], device=device)
    ids = ops.sample(logits, *columns(6, device), seeds, steps)
    assert ids[0] == ids[2]
    assert len(set(ids.tolist())) == 5


def test_greedy_takes_the_lowest_id_of_the_largest(device):
    logits = torch.zeros(5, 300, device=device)
    logits[0, [77, 200, 299]] = 2.0
    logits[1, 299] = 1e-30
    logits[2] = -1.0
    logits[2, 64], logits[2, 100] = -0.0, 0.0
    logits[3] = -INF
    logits[3, 131] = -1e38
    args = (*columns(5, device, temperature=9.9e-6), *torch.zeros(2, 5, dtype=torch.int64, device=device))
    assert_equal(ops.sample(logits, *args), torch.tensor([77, 299, 64, 131, 0]))
    assert_equal(reference.sample(logits, *args), torch.tensor([77, 299, 64, 131, 0]))


@pytest.mark.parametrize("filters", [(0.0, 0, 1.0, 0.0), *FILTERS], ids=str)
@pytest.mark.parametrize("vocab", [1, 65, 1000])
def test_rows_that_can_not_be_drawn_from_give_minus_one(vocab, filters, device, rng):
    logits = torch.randn(7, vocab, generator=rng).to(device)
    logits[0, vocab // 2] = POISON
    logits[1, vocab - 1] = POISON
    logits[2, 0] = -POISON
    logits[3, vocab // 3] = INF
    logits[4] = -INF
    logits[5] = -INF
    logits[5, vocab - 1] = -3.0
    zeros = torch.zeros(7, dtype=torch.int64, device=device)
    ids = ops.sample(logits, *columns(7, device, *filters), zeros, zeros)
    assert ids[:6].tolist() == [-1, -1, -1, -1, -1, vocab - 1]
    assert 0 <= ids[6].item() < vocab
    assert_equal(ids, reference.sample(logits, *columns(7, device, *filters), zeros, zeros))


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ((1.0, 3, 1.0, 0.0), [3, 5, 6]),  # of the ids tied at the threshold the lowest stay
        ((1.0, 1, 1.0, 0.0), [5]),
        ((1.0, 0, 0.3, 0.0), [5]),
        ((1.0, 0, 0.5, 0.0), [3, 5]),
        ((1.0, 4, 1.0, 0.2), [3, 5, 6, 8]),
        ((1.0, 0, 1.0, 0.4), [3, 5, 6, 8, 9]),
        ((1.0, 0, 1.0, 1.0), [5]),
        ((1.0, 0, 0.0, 0.0), [5]),
        ((1e4, 6, 1.0, 0.0), [0, 3, 5, 6, 8, 9]),
    ],
    ids=str,
)
def test_ties_at_the_threshold(filters, kept, device):
    # Weights 1 for id 5, about a half for 3, 6, 8, 9, almost none for the others.
    logits = torch.full((1, 70), -30.0, device=device)
    logits[0, 5] = 0.0
    logits[0, [3, 6, 8, 9]] = -0.7
    assert sorted(set(draws(logits, filters, 3000).tolist())) == kept


@pytest.mark.parametrize(("top_p", "count"), [(0.25, 2), (0.5, 4), (0.50001, 5), (0.124, 1), (0.99, 8)])
def test_top_p_on_equal_logits_counts_from_the_lowest_id(top_p, count, device):
    logits = torch.full((1, 200), -INF, device=device)
    logits[0, 100:116:2] = 1.25
    expected = list(range(100, 100 + 2 * count, 2))
    assert sorted(set(draws(logits, (1.0, 0, top_p, 0.0), 500).tolist())) == expected
    assert sorted(set(draws(logits, (0.3, 8, top_p, 0.5), 500).tolist())) == expected


def test_signed_zeros_are_ties(device):
    logits = torch.tensor([[0.0, -0.0, 0.0, -0.0, -9.0]], device=device)
    assert sorted(set(draws(logits, (1.0, 2, 1.0, 0.0), 200).tolist())) == [0, 1]
    assert sorted(set(draws(logits.flip(1), (1.0, 2, 1.0, 0.0), 200).tolist())) == [1, 2]


def test_a_flat_row_of_full_vocabulary(device):
    logits = torch.zeros(1, 200064, device=device)
    seed, step = torch.tensor([5], device=device), torch.tensor([8], device=device)
    for filters in ((1.0, 0, 1.0, 0.0), (1.0, 0, 0.7, 0.0), (1.0, 150000, 1.0, 0.0), (1.0, 50, 0.9, 0.2)):
        kept = round(filters[2] * (filters[1] or 200064))
        expected = [int(uniform(5, 8) * kept)]
        assert ops.sample(logits, *columns(1, device, *filters), seed, step).tolist() == expected, filters


def test_huge_and_tiny_logits(device, rng):
    zeros = torch.zeros(4, dtype=torch.int64, device=device)
    for scale in (1e-38, 1e-3, 1e3, 1e38):
        logits = (scale * torch.randn(4, 500, generator=rng)).clamp(-3e38, 3e38).to(device)
        for filters in FILTERS:
            args = (*columns(4, device, *filters), zeros + 11, zeros)
            assert_equal(
                ops.sample(logits, *args), reference.sample(logits, *args), name=f"{scale} {filters}"
            )


def test_results_do_not_depend_on_threads(rng):
    logits = 2 * torch.randn(3, 200064, generator=rng)
    zeros = torch.zeros(3, dtype=torch.int64)
    results = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        ids = [
            ops.sample(
                logits[:rows], *columns(rows, torch.device("cpu"), *filters), zeros[:rows], zeros[:rows]
            )
            for rows in (1, 3)
            for filters in FILTERS[::3]
        ]
        results.append(
            [*ids, *ops.logprobs(logits[:1], zeros[:1] + 9, 20), *ops.logprobs(logits, zeros + 9, 3)]
        )
    torch.set_num_threads(1)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert_equal(two, one)


def penalties(dims: dict[str, int], device: torch.device, rng: torch.Generator) -> tuple:
    """Inputs of adjust_logits: uneven histories of many repeated ids; row 0 has neither history nor bias."""
    rows, vocab = dims["num_rows"], dims["vocab"]

    def cuts(total: int) -> torch.Tensor:
        inner = torch.randint(0, total + 1, (max(rows - 2, 0),), generator=rng).sort().values
        ends = torch.tensor([total] * min(rows, 1))
        return torch.cat([torch.zeros(min(rows, 2) if rows > 1 else 1), inner, ends]).int()

    cu_history, cu_bias = cuts(dims["num_history"]), cuts(dims["num_bias"])
    history = torch.randint(0, max(1, vocab // 4), (dims["num_history"],), generator=rng, dtype=torch.int32)
    lengths = cu_history.diff()
    num_prompt = (lengths * torch.rand(rows, generator=rng)).int()
    bias_ids = torch.cat(
        [torch.randperm(vocab, generator=rng)[:n] for n in cu_bias.diff().tolist()] or [torch.empty(0)]
    )
    bias_values = torch.randn(len(bias_ids), generator=rng)
    bias_values[1::3] = -INF
    args = (
        *(history, cu_history, num_prompt),
        *(
            1 + torch.rand(rows, generator=rng),
            torch.randn(rows, generator=rng),
            torch.randn(rows, generator=rng),
        ),
        *(bias_ids.int(), bias_values, cu_bias[: rows + 1]),
    )
    return tuple(a.to(device) for a in args)


@pytest.mark.parametrize("dims", load("sampling", "adjust_logits"))
def test_adjust_logits(dims, device, rng):
    logits = torch.randn(dims["num_rows"], dims["vocab"], generator=rng).to(device)
    args = penalties(dims, device, rng)
    truth, same_precision, out = logits.double(), logits.clone(), strided(logits)
    reference.adjust_logits(truth, *args)
    reference.adjust_logits(same_precision, *args)
    ops.adjust_logits(out, *args)
    banned = truth == -INF
    assert_equal(out == -INF, banned, name="banned")
    finite = [t.masked_fill(banned, 0) for t in (out, truth, same_precision)]
    assert_close_to_truth(*finite)
    if dims["num_rows"] > 1:
        assert_equal(out[0], logits[0], name="row without penalties")
    again = logits.clone()
    ops.adjust_logits(again, *args)
    assert_equal(again, out, name="repeated run")


def adjusted(
    logits: list, history: list, num_prompt: int, rep: float, freq: float, pres: float, bias: dict, device
):
    """One row through the kernel."""
    ints = [
        torch.tensor(v, dtype=torch.int32, device=device) for v in (history, [0, len(history)], [num_prompt])
    ]
    floats = [torch.tensor([v], device=device) for v in (rep, freq, pres)]
    biases = [
        torch.tensor(list(bias), dtype=torch.int32, device=device),
        torch.tensor(list(bias.values()), dtype=torch.float32, device=device),
        torch.tensor([0, len(bias)], dtype=torch.int32, device=device),
    ]
    out = torch.tensor([logits], device=device)
    ops.adjust_logits(out, *ints, *floats, *biases)
    return out[0].tolist()


def test_adjust_logits_by_hand(device):
    logits = [4.0, -4.0, 1.0, 2.0, 0.0]
    # Ids 0 and 1 repeat over prompt and output: repetition counts once, frequency counts the output only.
    history = [0, 0, 1, 0, 1, 1, 3]
    assert adjusted(logits, history, 3, 2.0, 0.0, 0.0, {}, device) == [2.0, -8.0, 1.0, 1.0, 0.0]
    assert adjusted(logits, history, 3, 1.0, 0.25, 0.0, {}, device) == [3.75, -4.5, 1.0, 1.75, 0.0]
    assert adjusted(logits, history, 3, 1.0, 0.0, 0.5, {}, device) == [3.5, -4.5, 1.0, 1.5, 0.0]
    assert adjusted(logits, history, 3, 2.0, 0.25, 0.5, {}, device) == [1.25, -9.0, 1.0, 0.25, 0.0]
    assert adjusted(logits, history, 7, 2.0, 0.25, 0.5, {}, device) == [2.0, -8.0, 1.0, 1.0, 0.0]
    assert adjusted(logits, [], 0, 1.0, 0.0, 0.0, {4: 7.5, 0: -INF}, device) == [-INF, -4.0, 1.0, 2.0, 7.5]
    # Bias comes last: it is not scaled by the penalty.
    assert adjusted(logits, [2], 0, 2.0, 0.0, 0.0, {2: 3.0}, device) == [4.0, -4.0, 3.5, 2.0, 0.0]


def test_banned_ids_are_never_drawn(device, rng):
    row = torch.randn(1, 50, generator=rng)
    banned = {int(i): -INF for i in row[0].topk(10).indices}
    logits = torch.tensor([adjusted(row[0].tolist(), [], 0, 1.0, 0.0, 0.0, banned, device)], device=device)
    for filters in FILTERS:
        assert not set(draws(logits, filters, 300).tolist()) & set(banned)


@pytest.mark.parametrize("dims", load("sampling", "logprobs"))
def test_logprobs(dims, device, rng):
    rows, vocab, num_top = dims["num_rows"], dims["vocab"], dims["num_top"]
    # Rounded to thousandths, so that ties occur.
    logits = (3 * torch.randn(rows, vocab, generator=rng)).mul(1000).round().div(1000).to(device)
    token_ids = torch.randint(0, vocab, (rows,), generator=rng).to(device)
    values, ranks, top_ids, top_values = ops.logprobs(strided(logits), token_ids, num_top)
    truth = reference.logprobs(logits.double(), token_ids, num_top)
    rounded = reference.logprobs(logits, token_ids, num_top)
    assert_close_to_truth(values, truth[0], rounded[0], name="logprobs")
    assert_equal(ranks, truth[1], name="ranks")
    assert_equal(top_ids, truth[2], name="top_ids")
    assert_close_to_truth(top_values, truth[3], rounded[3], name="top_logprobs")
    for one, two in zip(
        (values, ranks, top_ids, top_values), ops.logprobs(logits, token_ids, num_top), strict=True
    ):
        assert_equal(two, one, name="repeated run")


def test_logprobs_by_hand(device):
    logits = torch.log(torch.tensor([[1.0, 4.0, 2.0, 4.0, 0.0, 5.0]], device=device))
    ids = torch.tensor([3], device=device)
    values, ranks, top_ids, top_values = ops.logprobs(logits, ids, 6)
    assert values.exp().item() == pytest.approx(4 / 16, rel=1e-6)
    assert ranks.item() == 2
    assert top_ids.tolist() == [[5, 1, 3, 2, 0, 4]]
    assert top_values[0].exp().tolist() == pytest.approx(
        [5 / 16, 4 / 16, 4 / 16, 2 / 16, 1 / 16, 0], rel=1e-6
    )


def test_logprobs_without_an_answer(device, rng):
    logits = torch.randn(5, 300, generator=rng).to(device)
    logits[1, 299] = POISON
    logits[2, 4] = INF
    logits[3] = -INF
    ids = torch.tensor([-1, 3, 3, 3, 300], device=device)
    results = ops.logprobs(logits, ids, 4)
    values, ranks, top_ids, top_values = (t.cpu() for t in results)
    assert values.isnan().all()
    assert not ranks.any()
    assert (top_ids[1:4] == -1).all()
    assert top_values[1:4].isnan().all()
    assert_equal(top_ids[[0, 4]], logits.cpu()[[0, 4]].topk(4).indices)
    assert top_values[[0, 4]].isfinite().all()
    for one, two in zip(results, reference.logprobs(logits, ids, 4), strict=True):
        if one.is_floating_point():
            assert_equal(one.isnan(), two.isnan())
        else:
            assert_equal(one, two)


def test_sampling_names_what_is_wrong(device):
    logits, ids = torch.zeros(2, 8, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    settings = columns(2, device)
    with pytest.raises(RuntimeError, match=r"sample: seeds must be \[num_rows=2\], got \[1\]"):
        ops.sample(logits, *settings, ids[:1], ids)
    with pytest.raises(RuntimeError, match="sample: logits must be float32, got bfloat16"):
        ops.sample(logits.bfloat16(), *settings, ids, ids)
    with pytest.raises(RuntimeError, match="sample: top_k must be int32, got int64"):
        ops.sample(logits, settings[0], settings[1].long(), *settings[2:], ids, ids)
    with pytest.raises(RuntimeError, match="sample: vocab must be at least 1"):
        ops.sample(logits[:, :0], *settings, ids, ids)
    with pytest.raises(RuntimeError, match="logprobs: num_top must be at most vocab=8, got 9"):
        ops.logprobs(logits, ids, 9)
    args = penalties({"num_rows": 2, "vocab": 8, "num_history": 3, "num_bias": 1}, device, torch.Generator())
    with pytest.raises(RuntimeError, match=r"adjust_logits: cu_history must be \[3\], got \[2\]"):
        ops.adjust_logits(logits, args[0], args[1][1:], *args[2:])


def test_adjust_logits_rejects_ids_outside_the_vocabulary():
    with pytest.raises(RuntimeError, match=r"history must lie in \[0, vocab=2\), got 2"):
        adjusted([0.0, 0.0], [1, 2], 0, 1.0, 0.0, 0.0, {}, torch.device("cpu"))
    with pytest.raises(RuntimeError, match=r"bias_ids must lie in \[0, vocab=2\), got -1"):
        adjusted([0.0, 0.0], [], 0, 1.0, 0.0, 0.0, {-1: 1.0}, torch.device("cpu"))


@pytest.mark.parametrize("op", ["adjust_logits", "sample", "logprobs"])
def test_opcheck(op, device, rng):
    logits, ids = (
        torch.randn(2, 8, generator=rng).to(device),
        torch.zeros(2, dtype=torch.int64, device=device),
    )
    floats = torch.zeros(2, 3, device=device)
    args = {
        "adjust_logits": (
            logits,
            *penalties({"num_rows": 2, "vocab": 8, "num_history": 3, "num_bias": 1}, device, rng),
        ),
        "sample": (ids.clone(), logits, *columns(2, device), ids, ids + 1),
        "logprobs": (floats[:, 0].clone(), ids.clone(), ids.repeat(3, 1).T.contiguous(), floats, logits, ids),
    }[op]
    scratch = ops._lib.workspace(op, device, *args)
    torch.library.opcheck(getattr(torch.ops.mmx, op).default, (*args, scratch))
