"""One sequence in the making: tokens in, pieces of an answer out."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import msgspec

from mmx.config import SamplingParams
from mmx.parsers import CallArgs, CallStart, Content, Event, Reasoning
from mmx.protocol import TokenLogprobs, TokenOut
from mmx.server.metric_set import Metrics
from mmx.server.output import Call, Reader
from mmx.tokenizer.detokenizer import IncrementalDetokenizer, Segment, StopStrings

Kind = Literal["content", "reasoning", "tool_calls", ""]
CallPiece = CallStart | CallArgs
_KINDS: dict[type[Event], Kind] = {
    Content: "content",
    Reasoning: "reasoning",
    CallStart: "tool_calls",
    CallArgs: "tool_calls",
}


class TokenEntry(NamedTuple):
    """One generated token with its logprobs."""

    token_id: int
    logprobs: TokenLogprobs


@dataclass(slots=True)
class Delta:
    """What one event of a stream says about a choice: one kind of payload, and the end if it is the last."""

    kind: Kind = ""
    text: str = ""
    calls: list[CallPiece] = field(default_factory=list)
    entries: list[TokenEntry] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class Choice:
    """Turns the engine's tokens of one sequence into ``Delta``s.

    The answer of a request without stream is the sum of the same deltas, so both forms are equal by
    construction. ``reader`` is None for plain text.
    """

    def __init__(
        self,
        index: int,
        request_id: str,
        params: SamplingParams,
        detokenizer: IncrementalDetokenizer,
        reader: Reader | None,
        interval: int,
        metrics: Metrics,
    ) -> None:
        self.index = index
        self.request_id = request_id
        self.params = params
        self.reader = reader
        self.num_tokens = 0
        self.num_cached_tokens = 0
        self.prompt_logprobs: list[TokenLogprobs] | None = None
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self.first_token_time: float | None = None
        self.last_token_time = 0.0
        self._detokenizer = detokenizer
        self._stops = (
            StopStrings(params.stop, include_stop_str=params.include_stop_str_in_output)
            if params.stop
            else None
        )
        self._metrics = metrics
        self._itl = metrics.itl
        self._interval = interval
        self._num_unsent = 0
        self._pieces: list[Event] = []
        self._entries: list[TokenEntry] = []
        self._token_ids: list[int] = []
        self._sent_any = False
        self._keep_ids = False
        self._hidden = False

    def keep_token_ids(self) -> None:
        """Report token ids in the deltas."""
        self._keep_ids = True

    def hide_tokens(self) -> None:
        """Only the prompt is asked for: what is generated to read it is no part of the answer."""
        self._hidden = True

    @property
    def reasoning_tokens(self) -> int:
        return self.reader.reasoning_tokens if self.reader is not None else 0

    @property
    def stopped_by_text(self) -> bool:
        """A stop string ended the sequence, so the engine has to be told."""
        return self._stops is not None and self._stops.matched is not None

    def shown_calls(self) -> list[Call]:
        """Calls that belong into the answer: what a limit or a stop of the client cut off does not."""
        by_itself = self.finish_reason in ("stop", "tool_calls") and self.stop_reason is None
        return [c for c in self.reader.calls if c.complete or by_itself] if self.reader is not None else []

    def cut_call(self) -> Call | None:
        """The call that was cut off, if there is one."""
        calls = self.reader.calls if self.reader is not None else []
        return calls[-1] if calls and calls[-1] not in self.shown_calls() else None

    def feed(self, out: TokenOut) -> list[Delta]:
        """Take what one step produced. At most one delta, except at the end."""
        if self._hidden:
            finish = "length" if out.finish_reason == "stop" else out.finish_reason
            out = msgspec.structs.replace(
                out, token_ids=[], logprobs=None, finish_reason=finish, stop_reason=None
            )
        ids = out.token_ids
        if out.num_cached_tokens is not None:
            self.num_cached_tokens = out.num_cached_tokens
        if out.prompt_logprobs is not None:
            self.prompt_logprobs = out.prompt_logprobs
        if ids:
            self._note_time(len(ids))
        if out.logprobs is not None:
            self._entries += map(TokenEntry, ids, out.logprobs)
        if self._keep_ids:
            self._token_ids += ids
        self._read(ids, out)
        if self.finish_reason is not None:
            return self._last_deltas()
        self._num_unsent += len(ids)
        if not self._pieces or (
            self._num_unsent < self._interval and self._sent_any and not self._opens_call()
        ):
            return []
        return [self._take_delta()]

    def _note_time(self, num_ids: int) -> None:
        now = time.monotonic()
        if self.first_token_time is None:
            self.first_token_time = now
        else:
            self._itl.observe((now - self.last_token_time) / num_ids, num_ids)
        self.last_token_time = now
        self.num_tokens += num_ids

    def _read(self, ids: list[int], out: TokenOut) -> None:
        """Tokens to pieces; sets the finish reason when this was the end."""
        finish = out.finish_reason
        shown = ids
        if finish == "stop" and ids:
            # The engine stops on token ids only, so the last one is the end token or a stop token.
            asked_for = out.stop_reason in self.params.stop_token_ids
            self.stop_reason = out.stop_reason if asked_for else None
            if not (asked_for and self.params.include_stop_str_in_output):
                shown = ids[:-1]
        if self.reader is None:
            self._read_plain(shown, finish is not None)
        else:
            self._read_parsed(self.reader, shown, finish is not None)
        if self._stops is not None and self._stops.matched is not None:
            self.finish_reason, self.stop_reason = "stop", self._stops.matched
        elif finish is not None:
            self.finish_reason = finish
        if self.finish_reason == "stop" and self.shown_calls():
            self.finish_reason = "tool_calls"

    def _watching(self) -> StopStrings | None:
        """The stop strings, once the answer is as long as it has to be."""
        return self._stops if self.num_tokens > self.params.min_tokens else None

    def _read_plain(self, ids: list[int], last: bool) -> None:
        text = self._detokenizer.feed(ids)
        if last:
            text += self._detokenizer.finish()
        if (stops := self._watching()) is not None:
            text = stops.feed(text)
            if last:
                text += stops.finish()
        if text:
            self._pieces.append(Content(text))

    def _read_parsed(self, reader: Reader, ids: list[int], last: bool) -> None:
        segments = self._detokenizer.feed_segments(ids)
        if last and (rest := self._detokenizer.finish()):
            segments.append(Segment(rest, [], False))
        if (stops := self._watching()) is not None:
            segments = self._cut_at_stops(stops, segments, last)
            last = last or stops.matched is not None
        self._pieces += reader.feed(segments, last)

    def _cut_at_stops(self, stops: StopStrings, segments: list[Segment], last: bool) -> list[Segment]:
        visible = []
        for text, ids, is_control in segments:
            shown = stops.feed(text, release=is_control)
            if stops.matched is None and is_control:
                before = shown[: len(shown) - len(text)]
                visible += [Segment(before, [], False)] * bool(before) + [Segment(text, ids, True)]
            else:
                visible.append(Segment(shown, ids, False))
            if stops.matched is not None:
                break
        if last:
            visible.append(Segment(stops.finish(), [], False))
        return visible

    def _opens_call(self) -> bool:
        return any(isinstance(piece, CallStart) for piece in self._pieces)

    def _take_delta(self) -> Delta:
        """The pieces of the first kind, with all logprobs and ids so far."""
        delta = Delta(entries=self._entries, token_ids=self._token_ids)
        self._entries, self._token_ids, self._num_unsent, self._sent_any = [], [], 0, True
        used = 0
        for piece in self._pieces:
            kind = _KINDS[type(piece)]
            if delta.kind not in ("", kind):
                break
            used += 1
            delta.kind = kind
            if isinstance(piece, Content | Reasoning):
                delta.text += piece.text
            elif isinstance(piece, CallStart | CallArgs):
                delta.calls.append(piece)
        del self._pieces[:used]
        return delta

    def _last_deltas(self) -> list[Delta]:
        deltas = [self._take_delta()]
        while self._pieces:
            deltas.append(self._take_delta())
        deltas[-1].finish_reason, deltas[-1].stop_reason = self.finish_reason, self.stop_reason
        return deltas
