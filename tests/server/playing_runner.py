"""A runner module that plays answers: the nth chat gets the nth list of tokens of a file.

``EngineConfig.model`` is ``folder?answers=FILE``; FILE holds a JSON list of lists of token ids.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from mmx.batch import SampledToken, ScheduledSeq
from mmx.config import EngineConfig
from mmx.engine.null_runner import NullOptions, NullRunner

SHORTEST_CHAT = 100


class PlayingRunner(NullRunner):
    def __init__(self, answers: list[list[int]], eos_token_id: int) -> None:
        super().__init__(NullOptions(vocab_size=1 << 18), (eos_token_id,))
        self.answers = answers
        self.requests: list[str] = []

    def _sample(self, seq: ScheduledSeq) -> SampledToken:
        if seq.request_id not in self.requests:
            # The server warms up with a prompt of a few tokens.
            if seq.start + len(seq.token_ids) < SHORTEST_CHAT:
                return SampledToken(request_id=seq.request_id, token_id=self.eos_token_ids[0])
            self.requests.append(seq.request_id)
        answer = self.answers[self.requests.index(seq.request_id)]
        return SampledToken(request_id=seq.request_id, token_id=answer[seq.num_output_tokens])


def build_runner(config: EngineConfig, progress: Callable[[str, float], None]) -> PlayingRunner:
    path = config.model.partition("?answers=")[2]
    answers = json.loads(Path(path).read_text())
    progress("load", 1.0)
    return PlayingRunner(answers, answers[0][-1])
