"""Conversations as data and their rendering to token ids with a loss mask, equal to the chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer

ENABLED, DISABLED, ADAPTIVE = "enabled", "disabled", "adaptive"
SEPARATOR = "]<]minimax[>["
DEFAULT_DEVELOPER = "You are a helpful assistant."
IDENTITY = (
    "Your model version is MiniMax-M3, developed by MiniMax. Knowledge cutoff: January 2026. Founded in early "
    "2022, MiniMax is a global AI foundation model company committed to advancing the frontiers of AI towards AGI."
)
THINKING = (
    "\n\n<thinking_instructions>\nYou have a thinking capability that allows you to reason step by step before "
    "responding. When thinking is enabled, wrap your reasoning in <mm:think></mm:think> tags before your response. "
    "When thinking is disabled, begin your response directly after the </mm:think> prefix. When thinking is "
    "adaptive, decide on your own whether to think for the current turn.\n"
)
MODE_LINES = {
    ENABLED: "Current thinking mode: enabled. You MUST think step by step before every response, including after "
    "receiving function/tool results.",
    DISABLED: "Current thinking mode: disabled. Do not output any thinking process.",
    ADAPTIVE: "Current thinking mode: adaptive. You are encouraged to think for complex decision-making, multi-step "
    "reasoning, or when analyzing function/tool results.",
}
_S = SEPARATOR
TOOLS_BEFORE = (
    "\n\n# Tools\nYou may call one or more tools to assist with the user query.\nHere are the tools available in "
    "JSONSchema format:\n\n<tools>\n"
)
TOOLS_AFTER = (
    f"</tools>\n\nTo call tools, wrap all invocations in a single {_S}<tool_call>{_S}</tool_call> block. Parameter "
    "values containing nested objects or arrays are recursively expanded into XML elements. Example:\n\n"
    f'{_S}<tool_call>\n{_S}<invoke name="tool-name-1">{_S}<param-1>value-1{_S}</param-1>{_S}<param-2>{_S}<item>'
    f"{_S}<key-a>val-a{_S}</key-a>{_S}<key-b>val-b{_S}</key-b>{_S}</item>{_S}</param-2>{_S}</invoke>\n"
    f'{_S}<invoke name="tool-name-2">{_S}<param-1>value-1{_S}</param-1>{_S}</invoke>\n{_S}</tool_call>'
)


@dataclass(frozen=True)
class Call:
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Reply:
    """An assistant message; ``thinks`` says whether it reasons when the thinking mode leaves the choice."""

    text: str
    reasoning: str = ""
    thinks: bool = False
    calls: Sequence[Call] = ()

    def __post_init__(self) -> None:
        if not self.reasoning:
            raise ValueError(f"every reply needs a reasoning for the enabled mode: {self.text!r}")


@dataclass(frozen=True)
class Turn:
    """A user message and what follows: a reply, or a calling reply, its results and a closing reply."""

    user: str
    reply: Reply
    results: Sequence[str] = ()
    closing: Reply | None = None


@dataclass
class Conversation:
    mode: str = ADAPTIVE
    developer: str = DEFAULT_DEVELOPER
    tools: Sequence[Mapping[str, Any]] = ()
    turns: list[Turn] = field(default_factory=list)


def xml(value: Any) -> str:
    """Render one argument value in M3's nested element form."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "".join(f"{_S}<{k}>{xml(v)}{_S}</{k}>" for k, v in value.items() if v is not None)
    if isinstance(value, list | tuple):
        return "".join(f"{_S}<item>{xml(v)}{_S}</item>" for v in value)
    return str(value)


def header(conversation: Conversation) -> str:
    """Render everything before the first turn."""
    tools = ""
    if conversation.tools:
        listed = "".join(f"<tool>{json.dumps(t, ensure_ascii=False)}</tool>\n" for t in conversation.tools)
        tools = TOOLS_BEFORE + listed + TOOLS_AFTER
    return (
        f"]~!b[]~b]system\n{IDENTITY}{THINKING}{MODE_LINES[conversation.mode]}\n</thinking_instructions>[e~[\n"
        f"]~b]developer\n{conversation.developer}{tools}[e~[\n"
    )


def reply_parts(reply: Reply, mode: str) -> tuple[str, str]:
    """Return an assistant turn as (given by the prompt, written by the model)."""
    body = reply.text
    if reply.calls:
        invokes = "".join(
            f'{_S}<invoke name="{c.name}">{xml(c.arguments)}{_S}</invoke>\n' for c in reply.calls
        )
        body += f"{_S}<tool_call>\n{invokes}{_S}</tool_call>"
    if mode == DISABLED:
        return "]~b]ai\n</mm:think>", f"{body}[e~["
    if mode == ENABLED:
        return "]~b]ai\n<mm:think>", f"{reply.reasoning}</mm:think>{body}[e~["
    thought = f"<mm:think>{reply.reasoning}" if reply.thinks else ""
    return "]~b]ai\n", f"{thought}</mm:think>{body}[e~["


def turn_parts(turn: Turn, mode: str) -> list[tuple[str, bool]]:
    """Render one turn as (text, is it the model's) parts."""
    parts = [(f"]~b]user\n{turn.user}[e~[\n", False)]
    given, written = reply_parts(turn.reply, mode)
    parts += [(given, False), (written, True), ("\n", False)]
    if turn.closing is not None:
        results = "".join(f"\n<response>{result}</response>" for result in turn.results)
        given, written = reply_parts(turn.closing, mode)
        parts += [(f"]~b]tool{results}[e~[\n", False), (given, False), (written, True), ("\n", False)]
    return parts


def render(conversation: Conversation) -> str:
    """Render the whole conversation, every turn complete, as one text."""
    parts = (text for turn in conversation.turns for text, _ in turn_parts(turn, conversation.mode))
    return header(conversation) + "".join(parts)


class Encoder:
    """Encodes conversations; texts cut at control tokens and newlines encode as the whole would."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.pad = tokenizer.get_vocab()["]!p~["]
        self._fixed = lru_cache(1024)(self._encode)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def header(self, conversation: Conversation) -> list[int]:
        return self._encode(header(conversation)) if conversation.tools else self._fixed(header(conversation))

    def turn(self, turn: Turn, mode: str) -> tuple[list[int], list[bool]]:
        """Return ids and, for each, whether the model writes it."""
        ids: list[int] = []
        mask: list[bool] = []
        for text, written in turn_parts(turn, mode):
            part = self._encode(text) if len(text) > 16 else self._fixed(text)
            ids += part
            mask += [written] * len(part)
        return ids, mask
