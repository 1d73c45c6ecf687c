"""Messages between the front end (server or ``mmx.LLM``) and the engine.

Plain data, encoded as tagged msgpack maps: one frame is a little-endian u32 length and the message.
The same messages are passed as objects when engine and front end share a process.

Life of a request: ``Submit`` -> any number of ``TokenOut`` inside ``StepOutput`` -> the last one has a
``finish_reason``; or one ``Failed``. ``Abort`` ends a request without further messages.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Literal

import msgspec

from mmx.config import SamplingParams

FinishReason = Literal["stop", "length", "abort"]


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of all messages; the wire carries the class name as tag."""


# ---- front end -> engine -------------------------------------------------------------------------


class Constraint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the tokens of one answer may be; enforced by masks (``mmx.grammar``).

    ``grammar`` is empty or a grammar in the matcher's dialect. It rules the answer from its ``start``
    ("grammar"), behind the thought that the prompt has opened ("thought") or that the answer may open
    ("choice"), or, with a ``trigger``, behind each such token of an answer that is otherwise "free";
    ``repeat`` lets free text follow it. A thought ends with ``thought_close``; after ``thought_budget``
    tokens the ids ``thought_end`` are forced; ``after_thought`` are forced between a thought and the grammar.

    When no more than ``reserve`` tokens are left, ``closers`` are preferred, best first, and the ids
    ``closing`` in a row; where ``letter`` is allowed too, inside a text, only ``text_closers``.
    ``separator``: the token before each tag, where closing tags must repeat names.

    ``allowed_ids`` are the only ids that may be sampled, ``banned_ids`` none of those that may;
    no sequence of ``bad_sequences`` is completed.
    """

    grammar: str = ""
    start: Literal["thought", "choice", "grammar", "free"] = "grammar"
    thought_open: int | None = None
    thought_close: int | None = None
    thought_budget: int | None = None
    thought_end: list[int] = []
    after_thought: list[int] = []
    trigger: int | None = None
    repeat: bool = True
    reserve: int = 0
    closers: list[int] = []
    closing: list[int] = []
    text_closers: list[int] = []
    letter: int | None = None
    separator: int | None = None
    allowed_ids: list[int] | None = None
    banned_ids: list[int] = []
    bad_sequences: list[list[int]] = []


class Submit(Message, frozen=True, kw_only=True):
    """Start one sequence. ``deadline_s`` counts seconds from arrival at the engine; ``cache_salt``
    separates prefix reuse between callers. ``priority`` below 0 is beyond the limit of the queue."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    priority: int = 0
    deadline_s: float | None = None
    cache_salt: str = ""
    constraint: Constraint | None = None


class Abort(Message, frozen=True, kw_only=True):
    """Stop these requests at the next step boundary and free their pages; unknown ids are ignored."""

    request_ids: list[str]


class ResetPrefixCache(Message, frozen=True, kw_only=True):
    """Forget all cached pages that no running request uses."""


class Profile(Message, frozen=True, kw_only=True):
    """Record the next ``num_steps`` steps (None: until told to end) and write them to ``path``; an empty one
    ends the recording. Answered by ``Profiled``."""

    path: str = ""
    num_steps: int | None = None
    with_stack: bool = False


class Shutdown(Message, frozen=True, kw_only=True):
    """Finish nothing more, release everything and exit."""


# ---- engine -> front end -------------------------------------------------------------------------


class Loading(Message, frozen=True, kw_only=True):
    """Progress before the engine is ready; ``progress`` runs from 0 to 1 within ``phase``."""

    phase: str
    progress: float


class Ready(Message, frozen=True, kw_only=True):
    """The engine serves from now on. ``max_model_len`` and its reason are printed by the front end."""

    model_family: str
    device: str
    dtype: str
    vocab_size: int
    max_model_len: int
    max_model_len_reason: str
    block_size: int
    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_num_queued_reqs: int


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural-log probabilities of one position: of the sampled token and of the best alternatives,
    best first; ``rank`` is the 1-based rank of the sampled token."""

    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


class TokenOut(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """New tokens of one request after one step. ``num_cached_tokens`` is set with the first token, and
    ``prompt_logprobs``, one for each prompt token but the first, if they were asked for.
    ``stop_reason`` is the stop token id that ended the sequence, if one did."""

    request_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    num_cached_tokens: int | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """Gauges and cumulative counters, for /metrics and /load."""

    num_running: int
    num_waiting: int
    num_waiting_tokens: int
    num_blocks: int
    num_free_blocks: int
    num_cached_blocks: int
    prompt_tokens: int
    generation_tokens: int
    prefix_cache_queries: int
    prefix_cache_hits: int
    num_preemptions: int
    num_steps: int


class StepOutput(Message, frozen=True, kw_only=True):
    """Everything one engine step produced; ``step_tokens`` is the number of tokens computed."""

    outputs: list[TokenOut]
    stats: EngineStats
    step_tokens: int
    step_seconds: float


class Failed(Message, frozen=True):
    """One request ended without a result. ``code`` is the slug of the error table, ``status`` the HTTP
    status a server answers with, ``param`` the field at fault."""

    request_id: str
    message: str
    code: str
    status: int
    param: str | None = None


def duplicate(request_id: str) -> Failed:
    """The answer to a request whose id a live one has."""
    text = f"request_id {request_id[:64]!r} is in use by a live request"
    return Failed(request_id, text, "duplicate_request_id", 409, "request_id")


class Profiled(Message, frozen=True, kw_only=True):
    """Answer to ``Profile``: ``path`` of what was written, empty if a recording has begun; or the
    ``error``."""

    path: str = ""
    error: str | None = None


class EngineDead(Message, frozen=True, kw_only=True):
    """The engine can not go on (or never became ready); its process ends after this message.
    ``exit_code`` is the code a server process should end with."""

    message: str
    exit_code: int = 1


ToEngine = Submit | Abort | ResetPrefixCache | Profile | Shutdown
FromEngine = Loading | Ready | StepOutput | Failed | Profiled | EngineDead

_encoder = msgspec.msgpack.Encoder()
# Read payloads on either side.
decode_to_engine: Callable[[bytes | bytearray], ToEngine] = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine: Callable[[bytes | bytearray], FromEngine] = msgspec.msgpack.Decoder(FromEngine).decode

HEADER = struct.Struct("<I")


def encode_frame(message: msgspec.Struct) -> bytes:
    """The message as bytes on the wire, length header included."""
    payload = _encoder.encode(message)
    return HEADER.pack(len(payload)) + payload


class Frames:
    """Cuts a stream of bytes into what ``encode_frame`` has made of each message, without the headers."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytearray]:
        """The payloads that ``data`` completes."""
        self._buffer += data
        payloads, start = [], 0
        while len(self._buffer) - start >= HEADER.size:
            begin = start + HEADER.size
            end = begin + HEADER.unpack_from(self._buffer, start)[0]
            if len(self._buffer) < end:
                break
            payloads.append(self._buffer[begin:end])
            start = end
        del self._buffer[:start]
        return payloads
