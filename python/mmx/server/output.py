"""How the output of a chat is read: which parser a request gets, and what is kept of its calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from mmx.errors import ConfigError
from mmx.parsers import (
    DEFAULT_PARSER,
    MARKERS,
    CallArgs,
    CallEnd,
    CallStart,
    Content,
    Event,
    Machine,
    Reasoning,
    make_parser,
    reasoning_parser_name,
    tool_parser_name,
)
from mmx.server.settings import AnswerSettings
from mmx.tokenizer import Family, Segment, Tokenizer

# The end of a prompt that surely holds the last turn opener.
PROMPT_TAIL_TOKENS = 64


@dataclass(slots=True)
class Call:
    """A tool call of the answer. ``sent`` is its JSON as streamed, ``arguments`` the final form, which for
    an incomplete call holds its finished parameters only."""

    id: str
    name: str
    sent: str = ""
    arguments: str = "{}"
    complete: bool = False


@dataclass(frozen=True)
class OutputFormat:
    """The parsers of one server, and the thought tags of their family."""

    reasoning_parser: str
    tool_parser: str
    family: Family | None
    marker_ids: dict[str, int] = field(default_factory=dict)

    @classmethod
    def choose(cls, settings: AnswerSettings, family: Family | None, tokenizer: Tokenizer) -> OutputFormat:
        """What the flags say, ``auto`` by the family of the checkpoint; ConfigError if they contradict."""
        default = DEFAULT_PARSER[family] if family is not None else "none"
        names = [
            default if n == "auto" else n for n in (settings.reasoning_parser, settings.tool_call_parser)
        ]
        reasoning, tool = reasoning_parser_name(names[0]), tool_parser_name(names[1])
        try:
            make_parser(reasoning, tool)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        used = next((name for name in (reasoning, tool) if name != "none"), None)
        if used is None:
            return cls(reasoning, tool, None)
        spoken: Family = "m3" if "m3" in used else "m2"
        return cls(reasoning, tool, spoken, tokenizer.ids_of(MARKERS[spoken]))

    @property
    def called_family(self) -> Family | None:
        """The family whose calls are read; None if none are."""
        return None if self.tool_parser == "none" else self.family

    def reader(
        self,
        *,
        prompt: str,
        thinking_mode: str,
        tools: list[dict[str, Any]] | None,
        tool_choice: str,
        inline_thoughts: bool,
    ) -> Reader | None:
        """A fresh reader for one sequence; None when all of the output is content."""
        if self.family is None:
            return None
        machine = make_parser(
            self.reasoning_parser,
            self.tool_parser,
            prompt=prompt,
            thinking_mode=thinking_mode,
            tools=tools,
            tool_choice=tool_choice,
            marker_ids=self.marker_ids,
        )
        tags = {"m2": ("<think>\n", "\n</think>\n\n"), "m3": ("<mm:think>", "</mm:think>")}[self.family]
        return Reader(machine, tags if inline_thoughts else None)


class Reader:
    """One parser at work. ``tags``: show thoughts inside the content, between these."""

    def __init__(self, machine: Machine, tags: tuple[str, str] | None) -> None:
        self._machine = machine
        self._tags = tags
        self._thinking = False
        self.calls: list[Call] = []

    @property
    def reasoning_tokens(self) -> int:
        return self._machine.reasoning_tokens

    def feed(self, segments: list[Segment], finished: bool) -> list[Event]:
        """Events for new text, ends of calls left out."""
        found: list[Event] = []
        for segment in segments:
            found += self._machine.feed(segment.text, segment.token_ids)
        num_before_end = len(found)
        if finished:
            found += self._machine.feed("", [], finished=True)
            # A call that only the end of the output closed may lack what would have followed.
            found[num_before_end:] = [
                replace(event, complete=False) if isinstance(event, CallEnd) else event
                for event in found[num_before_end:]
            ]
        shown = [event for event in found if not self._note(event)]
        return shown if self._tags is None else list(self._inline(shown, self._tags, finished))

    def _note(self, event: Event) -> bool:
        """Keep what calls say; true if there is nothing to send."""
        match event:
            case CallStart(_, call_id, name):
                self.calls.append(Call(call_id, name))
            case CallArgs(index, text):
                self.calls[index].sent += text
            case CallEnd(index, arguments, complete):
                self.calls[index].arguments, self.calls[index].complete = arguments, complete
                return True
        return False

    def _inline(self, events: list[Event], tags: tuple[str, str], finished: bool) -> Iterator[Event]:
        opening, closing = tags
        for event in events:
            if isinstance(event, Reasoning):
                yield Content(("" if self._thinking else opening) + event.text)
                self._thinking = True
                continue
            if self._thinking:
                self._thinking = False
                yield Content(closing)
            yield event
        if finished and self._thinking:
            self._thinking = False
            yield Content(closing)


def prompt_tail(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    """Text of the end of a prompt that came as ids."""
    return tokenizer.decode(token_ids[-PROMPT_TAIL_TOKENS:], skip_special_tokens=False)


MakeReader = Callable[[], Reader | None]
