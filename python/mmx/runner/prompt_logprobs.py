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
    """The prompts of which a part has been computed; at most ``capacity``, since one that was aborted is not
    heard of again."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._open: dict[str, ExplainedPrompt] = {}

    def take(
        self, logits: torch.Tensor, seqs: Sequence[ScheduledSeq], group: Group
    ) -> tuple[torch.Tensor, dict[str, ExplainedPrompt]]:
        """Keep what ``seqs`` want to know of their prompts.

        Args:
            logits: [num_rows, vocab of this rank] f32: of all tokens of a sequence with targets, of the last
                token of any other one that samples.

        Returns:
            the rows of the sampling sequences, and the prompts that are complete, by request.
        """
        sampling, complete = [], {}
        row = 0
        for seq in seqs:
            num_rows = len(seq.token_ids) if seq.prompt_targets else int(seq.samples)
            if seq.prompt_targets:
                rows = logits[row : row + len(seq.prompt_targets)]
                self._keep(seq, whole_rows(rows, group) if group.size > 1 else rows)
            row += num_rows
            if seq.samples:
                sampling.append(row - 1)
                if seq.request_id in self._open:
                    complete[seq.request_id] = self._open.pop(seq.request_id)
        (chosen,) = upload([np.array(sampling, np.int64)], logits.device)
        return logits[chosen], complete

    def _keep(self, seq: ScheduledSeq, logits: torch.Tensor) -> None:
        num_top = min(seq.params.prompt_logprobs or 0, logits.shape[1])
        (targets,) = upload([np.array(seq.prompt_targets, np.int64)], logits.device)
        columns = [fetch(column) for column in ops.logprobs(logits, targets, num_top)]
        if seq.start == 0 or seq.request_id not in self._open:
            self._open.pop(seq.request_id, None)
            self._open[seq.request_id] = ExplainedPrompt()
            while len(self._open) > self._capacity:
                del self._open[next(iter(self._open))]
        self._open[seq.request_id].parts[seq.start] = columns
