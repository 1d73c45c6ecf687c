"""From a grammar and a request's wishes to the plain data that the engine enforces."""

from __future__ import annotations

from typing import Literal

from mmx.grammar.build import TRIGGER, Built, Family
from mmx.protocol import Constraint
from mmx.tokenizer import Tokenizer

THOUGHT_TAGS: dict[Family, tuple[str, str]] = {
    "m2": ("<think>", "</think>"),
    "m3": ("<mm:think>", "</mm:think>"),
}
# What ends a thought at its budget, so that the answer does not begin in the middle of a sentence.
_LAST_WORDS = "\n\nThat is enough thinking; I answer now."

Start = Literal["thought", "choice", "grammar", "free"]


def make_constraint(
    tokenizer: Tokenizer,
    family: Family | None,
    built: Built | None,
    start: Start,
    *,
    triggered: bool = False,
    repeat: bool = True,
    thought_budget: int | None = None,
    allowed_ids: list[int] | None = None,
    banned_ids: list[int] | None = None,
    bad_sequences: list[list[int]] | None = None,
) -> Constraint:
    """``start``: where the answer begins. ``triggered``: ``built`` rules only what follows the opener of a
    call; ``repeat``: and free text may follow that."""
    control = tokenizer.control_ids
    opening, closing = (None, None) if family is None else map(control.get, THOUGHT_TAGS[family])
    newline = tokenizer.encode_plain("\n") if family == "m2" else []
    last_words = [] if thought_budget is None else tokenizer.encode_plain(_LAST_WORDS)
    closers = [] if built is None else [_closer_id(tokenizer, text) for text in built.closers]
    ends_text = [] if built is None else [text for text in built.closers if text == '"' or text in control]
    ids_of_text = [_closer_id(tokenizer, text) for text in ends_text]
    return Constraint(
        grammar="" if built is None else built.grammar,
        start=start,
        thought_open=opening,
        thought_close=closing,
        thought_budget=thought_budget,
        thought_end=[] if closing is None else [*last_words, *newline, closing],
        after_thought=tokenizer.encode_plain("\n\n") if family == "m2" else [],
        trigger=control[TRIGGER[family]] if triggered and family is not None else None,
        repeat=repeat,
        reserve=0 if built is None else built.reserve,
        closers=[i for i in closers if i is not None],
        closing=[] if built is None or not built.closing else tokenizer.encode_plain(built.closing),
        text_closers=[i for i in ids_of_text if i is not None],
        letter=_closer_id(tokenizer, "q"),
        separator=control[TRIGGER["m3"]] if built is not None and built.open_keys else None,
        allowed_ids=allowed_ids,
        banned_ids=banned_ids or [],
        bad_sequences=bad_sequences or [],
    )


def _closer_id(tokenizer: Tokenizer, text: str) -> int | None:
    """The control token or the single token with this text; None if there is none."""
    if text in tokenizer.control_ids:
        return tokenizer.control_ids[text]
    ids = tokenizer.encode_plain(text)
    return ids[0] if len(ids) == 1 else None
