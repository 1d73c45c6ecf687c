"""Output parsers of MiniMax M2.5 / M2.7 / M3: generated text -> reasoning, content and tool calls.

::

    parser = make_parser("minimax_m3", "minimax_m3", prompt=prompt_text, tools=tools, marker_ids=ids)
    for segment in detokenizer.feed_segments(new_ids):
        for event in parser.feed(segment.text, segment.token_ids):
            ...
    events = parser.feed(detokenizer.finish(), [], finished=True)

A parser is one incremental state machine per family, driven by text, by token ids or by both. Events come in
the order of the output and do not depend on how it was cut: a whole answer is one `feed` (`parse`). No torch,
no tokenizer. Formats and decisions: the modules of the families.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from mmx.parsers import minimax_m2, minimax_m3
from mmx.parsers.events import (
    CallArgs,
    CallEnd,
    CallStart,
    Content,
    Event,
    ParsedCall,
    ParsedMessage,
    Reasoning,
    collect,
)
from mmx.parsers.machine import Machine, ParserOptions, new_call_id, schemas_of
from mmx.parsers.plain import PlainParser

__all__ = [
    "DEFAULT_PARSER",
    "MARKERS",
    "REASONING_PARSERS",
    "TOOL_PARSERS",
    "CallArgs",
    "CallEnd",
    "CallStart",
    "Content",
    "Event",
    "Machine",
    "ParsedCall",
    "ParsedMessage",
    "Reasoning",
    "answer_start",
    "collect",
    "make_parser",
    "parse",
    "reasoning_parser_name",
    "tool_parser_name",
]

_Family = Literal["m2", "m3"]

REASONING_PARSERS = ("minimax_m2", "minimax_m2_append_think", "minimax_m3", "none")
TOOL_PARSERS = ("minimax_m2", "minimax_m3", "none")
DEFAULT_PARSER: dict[_Family, str] = {"m2": "minimax_m2", "m3": "minimax_m3"}
MARKERS: dict[_Family, tuple[str, ...]] = {"m2": minimax_m2.MARKERS, "m3": minimax_m3.MARKERS}
"""Control tokens that a detokenizer must not skip, whatever the client asked for, and whose ids
`make_parser` takes as ``marker_ids``."""

_ALIASES = {"minimax": "minimax_m2", "minimax_append_think": "minimax_m2_append_think"}
_TURN_OPENER = "]~b]ai\n"


def reasoning_parser_name(name: str) -> str:
    """Canonical name of a reasoning parser; hyphens and the short names of other servers are accepted."""
    return _canonical(name, REASONING_PARSERS, "reasoning_parser")


def tool_parser_name(name: str) -> str:
    """Canonical name of a tool call parser."""
    return _canonical(name, TOOL_PARSERS, "tool_parser")


def _canonical(name: str, known: Sequence[str], field: str) -> str:
    plain = name.replace("-", "_").lower()
    plain = _ALIASES.get(plain, plain)
    if plain not in known:
        raise ValueError(f"{field}: must be one of {', '.join(known)}, got {name!r}")
    return plain


def make_parser(
    reasoning_parser: str,
    tool_parser: str,
    *,
    prompt: str | None = None,
    thinking_mode: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    tool_choice: str = "auto",
    marker_ids: Mapping[str, int] | None = None,
    call_id: Callable[[], str] = new_call_id,
) -> Machine:
    """Parser of one answer.

    ``prompt``: the rendered prompt, or its end: the text behind its last turn opener tells whether the
    thought is open already. Without it M2 starts inside the thought, M3 if ``thinking_mode`` is "enabled".
    ``tools``: the request's tools; their schemas type the arguments. ``tool_choice`` "none": no calls are
    reported; M2 drops their text, M3 leaves it in the content. ``marker_ids``: ids of `MARKERS`.
    """
    reasoning, tool = reasoning_parser_name(reasoning_parser), tool_parser_name(tool_parser)
    families = {_family_of(name) for name in (reasoning, tool) if name != "none"}
    if len(families) > 1:
        raise ValueError(
            f"tool_parser: must be none or of the family of reasoning_parser {reasoning!r}, "
            f"got {tool_parser!r}"
        )
    if not families:
        return PlainParser()
    family = families.pop()
    opened = None if prompt is None or _TURN_OPENER not in prompt else prompt.rpartition(_TURN_OPENER)[2]
    calls: Literal["parse", "discard", "off"] = "parse"
    if tool == "none":
        calls = "off"
    elif tool_choice == "none":
        calls = "discard" if family == "m2" else "off"
    options = ParserOptions(
        thoughts="off"
        if reasoning == "none"
        else "inline"
        if reasoning.endswith("append_think")
        else "split",
        calls=calls,
        in_thought=_in_thought(family, opened, thinking_mode),
        at_start=opened in (None, "", minimax_m3.THINK_CLOSE),
        schemas=schemas_of(tools),
        marker_ids=marker_ids or {},
        new_call_id=call_id,
    )
    return minimax_m2.MiniMaxM2Parser(options) if family == "m2" else minimax_m3.MiniMaxM3Parser(options)


def parse(parser: Machine, text: str, token_ids: Sequence[int] | None = None) -> ParsedMessage:
    """A whole answer at once, with a fresh ``parser``."""
    return collect(parser.feed(text, token_ids, finished=True))


def _family_of(name: str) -> _Family:
    return "m3" if name.startswith("minimax_m3") else "m2"


def answer_start(
    family: _Family, prompt: str, thinking_mode: str | None
) -> Literal["thought", "choice", "text"]:
    """Where an answer to ``prompt`` (or to its end) begins: inside a thought, before one that the model may
    open (M3), or in its text."""
    opened = prompt.rpartition(_TURN_OPENER)[2] if _TURN_OPENER in prompt else None
    if _in_thought(family, opened, thinking_mode):
        return "thought"
    return "choice" if family == "m3" and opened in (None, "") else "text"


def _in_thought(family: _Family, opened: str | None, thinking_mode: str | None) -> bool:
    """Why only the text behind the turn opener: system text and users quote the tags."""
    module = minimax_m2 if family == "m2" else minimax_m3
    if opened is None:
        return family == "m2" or thinking_mode == "enabled"
    open_at, closed_at = opened.rfind(module.THINK_OPEN), opened.rfind(module.THINK_CLOSE)
    return open_at > closed_at or (family == "m2" and closed_at < 0)
