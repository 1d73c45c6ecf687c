"""From logits to tokens: penalties and biases, the draw, log-probabilities. All in fp32."""

from __future__ import annotations

import torch

from mmx.ops._lib import call


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
    """Applies in place: repetition penalty r over prompt and output (``l / r`` if ``l > 0`` else ``l * r``),
    then frequency and presence penalties over the output, then biases.

    Args:
        logits: [num_rows, vocab] f32, updated.
        history: [num_history] int32, each row's prompt ids, then its output ids; empty without penalties.
        cu_history: [num_rows + 1] int32 prefix sums of history lengths.
        num_prompt: [num_rows] int32, length of the prompt part.
        repetition, frequency, presence: [num_rows] f32; 1, 0, 0 are neutral.
        bias_ids, bias_values: [num_bias] int32 and f32, ids distinct within a row; -inf bans an id.
        cu_bias: [num_rows + 1] int32 prefix sums of bias counts.
    """
    penalties = (history, cu_history, num_prompt, repetition, frequency, presence)
    call("adjust_logits", (logits, *penalties, bias_ids, bias_values, cu_bias))


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    steps: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draws one id per row; the exact rule stands at ``SampleParams`` in cpp/core/params/sampling.h.

    Args:
        logits: [num_rows, vocab] f32; rows may be strided.
        temperature, top_p, min_p: [num_rows] f32; temperature below 1e-5 is greedy.
        top_k: [num_rows] int32, 0 or -1 is off.
        seeds, steps: [num_rows] int64; the draw is a pure function of both.

    Returns:
        [num_rows] int64; -1 where a row holds NaN or its largest logit is not finite.
    """
    out = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device) if out is None else out
    call("sample", (out, logits, temperature, top_k, top_p, min_p, seeds, steps))
    return out


def logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Natural-log probabilities of ``token_ids`` and of the ``num_top`` best ids.

    Args:
        logits: [num_rows, vocab] f32; rows may be strided.
        token_ids: [num_rows] int64.

    Returns:
        logprobs [num_rows] f32; ranks [num_rows] int64 (1 = largest); top_ids [num_rows, num_top] int64 by
        (logit descending, id ascending); top_logprobs [num_rows, num_top] f32. NaN, rank 0 and ids of -1
        stand where there is no answer: for a token id outside the vocabulary (-1 from ``sample``), and for a
        whole row that ``sample`` refuses.
    """
    rows, device = logits.shape[0], logits.device
    outs = (
        torch.empty(rows, dtype=torch.float32, device=device),
        torch.empty(rows, dtype=torch.int64, device=device),
        torch.empty((rows, num_top), dtype=torch.int64, device=device),
        torch.empty((rows, num_top), dtype=torch.float32, device=device),
    )
    call("logprobs", (*outs, logits, token_ids))
    return outs
