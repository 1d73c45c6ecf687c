from __future__ import annotations

import torch

_GREEDY_BELOW = torch.tensor(1e-5).item()  # as fp32, like the temperatures
_MASK64 = (1 << 64) - 1


def adjust_logits(
    logits: torch.Tensor,
    history: torch.Tensor,
    cu_history: torch.Tensor,
    num_prompt: torch.Tensor,
    repetition: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
    bias_ids: torch.Tensor,
    bias_values: torch.Tensor,
    cu_bias: torch.Tensor,
) -> None:
    for row in range(logits.shape[0]):
        values = logits[row]
        ids = history[cu_history[row] : cu_history[row + 1]].long()
        counts = torch.bincount(ids[num_prompt[row] :], minlength=logits.shape[1]).to(values.dtype)
        seen, r = ids.unique(), repetition[row].item()
        values[seen] = torch.where(values[seen] > 0, values[seen] / r, values[seen] * r)
        values -= frequency[row].item() * counts
        values -= presence[row].item() * (counts > 0)
        biased = slice(cu_bias[row], cu_bias[row + 1])
        values[bias_ids[biased].long()] += bias_values[biased].to(values.dtype)


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    steps: torch.Tensor,
) -> torch.Tensor:
    columns = [column.tolist() for column in (temperature, top_k, top_p, min_p, seeds, steps)]
    ids = [_sample_row(*args) for args in zip(logits, *columns, strict=True)]
    return torch.tensor(ids, dtype=torch.int64, device=logits.device)


def _sample_row(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float, seed: int, step: int
) -> int:
    if not logits.max().isfinite():
        return -1
    if temperature < _GREEDY_BELOW:
        return int((logits == logits.max()).nonzero()[0])
    ids, weights = kept_weights(logits, temperature, top_k, top_p, min_p)
    mass = weights.cumsum(0)
    return int(ids[mass > uniform(seed, step) * mass[-1]][0])


def kept_weights(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids that stay, ascending, and their fp64 weights: probabilities relative to the most probable id's."""
    wide = logits.double()
    weights = torch.exp((wide - wide.max()) / temperature)
    order = logits.sort(descending=True, stable=True).indices
    order = order[weights[order] >= min_p]
    if top_k > 0:
        order = order[:top_k]
    if top_p < 1:
        mass = weights[order].cumsum(0)
        order = order[: int((mass < top_p * mass[-1]).sum()) + 1]
    ids = order.sort().values
    return ids, weights[ids]


def uniform(seed: int, step: int) -> float:
    """The number in [0, 1) that decides draw ``step`` of a sequence: top 24 bits of splitmix64."""
    z = (seed + 0x9E3779B97F4A7C15 * (step + 1)) & _MASK64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK64
    return ((z ^ (z >> 31)) >> 40) / 2**24


def logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    nan = float("nan")
    usable = logits.max(-1).values.isfinite()
    held = usable & (token_ids >= 0) & (token_ids < logits.shape[1])
    column = token_ids.where(held, 0).unsqueeze(1)
    values = torch.log_softmax(logits, -1)
    ranks = (logits > logits.gather(1, column)).sum(-1) + 1
    top_ids = logits.sort(descending=True, stable=True).indices[:, :num_top]
    return (
        values.gather(1, column).squeeze(1).where(held, nan),
        ranks.where(held, 0),
        top_ids.where(usable.unsqueeze(1), -1),
        values.gather(1, top_ids).where(usable.unsqueeze(1), nan),
    )
