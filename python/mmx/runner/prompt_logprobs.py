"""Log-probabilities of prompt tokens, gathered over the steps that compute the prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mmx import ops
from mmx.batch import ScheduledSeq
from mmx.distributed import Group
from mmx.runner.sampler import ExplainedPrompt, whole_rows
from mmx.runner.upload import fetch, upload


class PromptLogprobs:
    """The prompts of which a part has been computed; at most ``capacity``, of the latest parts, since those
    that are aborted are not heard of again."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._open: dict[str, ExplainedPrompt] = {}

    def take(self, logits: torch.Tensor, seqs: Sequence[ScheduledSeq], group: Group) -> torch.Tensor:
        """Keep what ``seqs`` want to know of their prompts.

        Args:
            logits: [num_rows, vocab of this rank] f32: of all tokens of a sequence with targets, of the last
                token of any other one that samples.

        Returns:
            the rows of the sampling sequences.
        """
        sampling, row = [], 0
        for seq in seqs:
            num_rows = len(seq.token_ids) if seq.prompt_targets else int(seq.samples)
            if seq.prompt_targets:
                rows = logits[row : row + len(seq.prompt_targets)]
                self._keep(seq, whole_rows(rows, group) if group.size > 1 else rows)
            row += num_rows
            if seq.samples:
                sampling.append(row - 1)
        (chosen,) = upload([np.array(sampling, np.int64)], logits.device)
        return logits[chosen]

    def complete(self, seqs: Sequence[ScheduledSeq]) -> dict[str, ExplainedPrompt]:
        """By request, the prompts that end in a step in which ``seqs`` sample. Not part of ``take``: the last
        token of a prompt has no target, and may be alone in its step."""
        found = {}
        for seq in seqs if self._open else ():
            prompt = self._open.pop(seq.request_id, None)
            # Why the rest: an aborted request of that name may have left one.
            wanted = seq.prompt_targets or (seq.start > 0 and seq.params.prompt_logprobs is not None)
            if prompt is not None and wanted:
                found[seq.request_id] = prompt
        return found

    def _keep(self, seq: ScheduledSeq, logits: torch.Tensor) -> None:
        num_top = min(seq.params.prompt_logprobs or 0, logits.shape[1])
        (targets,) = upload([np.array(seq.prompt_targets, np.int64)], logits.device)
        columns = [fetch(column) for column in ops.logprobs(logits, targets, num_top)]
        begun = self._open.pop(seq.request_id, None)
        self._open[seq.request_id] = prompt = begun if begun and seq.start else ExplainedPrompt()
        prompt.parts[seq.start] = columns
        while len(self._open) > self._capacity:
            del self._open[next(iter(self._open))]
