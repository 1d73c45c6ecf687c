"""State of one sequence inside the scheduler."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmx.config import SamplingParams


@dataclass(slots=True, eq=False)
class Request:
    """A sequence from submission to its last token.

    ``tokens`` is the prompt followed by what was generated. Positions below ``num_planned`` have been
    handed to the runner, in ``num_in_flight`` steps whose results are not known yet; ``num_pending`` of them
    sample a token, which follows ``tokens``. Pages below ``num_keyed_pages`` are in the prefix cache under
    ``page_keys[i + 1]`` (``page_keys[0]`` is the root). A preempted request keeps its tokens and keys
    and loses its pages. ``masked``: token masks, made from all tokens so far, bound what is sampled.
    """

    request_id: str
    tokens: list[int]
    num_prompt_tokens: int
    params: SamplingParams
    priority: int
    arrival: int
    seed: int
    max_total_tokens: int
    stop_ids: frozenset[int]
    banned_ids: list[int]
    deadline: float | None
    page_keys: list[bytes]
    masked: bool = False
    num_planned: int = 0
    num_in_flight: int = 0
    num_pending: int = 0
    num_keyed_pages: int = 0
    num_cached_tokens: int | None = None
    block_ids: list[int] = field(default_factory=list)

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: lower goes first, the highest is preempted first."""
        return (self.priority, self.arrival)

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def num_unplanned(self) -> int:
        """Tokens still to be computed before the next one can be sampled; 0 where the pending one is the
        last."""
        num_tokens = len(self.tokens) + self.num_pending
        if self.num_pending and num_tokens >= self.max_total_tokens:
            return 0
        return num_tokens - self.num_planned

    @property
    def explains_prompt(self) -> bool:
        """Whether log-probabilities of the prompt are still to be computed, with every token of it."""
        return self.params.prompt_logprobs is not None and not self.num_output_tokens and not self.num_pending

    @property
    def needs_history(self) -> bool:
        p = self.params
        return p.repetition_penalty != 1.0 or p.frequency_penalty != 0.0 or p.presence_penalty != 0.0
