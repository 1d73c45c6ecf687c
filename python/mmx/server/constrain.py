"""From request fields to the constraint that the engine enforces."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from mmx.grammar import MARKERS, TRIGGER, Calls, CallTool, Document, SchemaError, build
from mmx.grammar.build import Family
from mmx.grammar.constraint import Start, make_constraint
from mmx.grammar.errors import time_limit
from mmx.parsers import answer_start
from mmx.protocol import Constraint
from mmx.server.documents import check_combination, requested_document
from mmx.server.errors import ApiError, clip, invalid, unsupported
from mmx.server.model_front import ModelFront
from mmx.server.schemas import ChatRequest, Generate
from mmx.server.thinking import ThinkingChoice
from mmx.server.tool_choice import ToolChoice, choose_tools, enforced_calls
from mmx.tokenizer import Tokenizer

MAX_BAD_WORDS = 128
MAX_BAD_CHARS = 1000
# Others wait for the threads that build grammars.
BUILD_SECONDS = 10.0

MakeConstraint = Callable[[], Constraint | None]
"""Builds the grammar, which takes a while."""


class _Plan(NamedTuple):
    """What is asked for, before any grammar is built. ``triggered``: ``calls`` rule only what follows the
    opener of a call; ``banned`` are ids that must not appear."""

    start: Start
    document: Document | None = None
    calls: Calls | None = None
    triggered: bool = False
    budget: int | None = None
    banned: tuple[int, ...] = ()


def completion_constraint(front: ModelFront, request: Generate, vocab_size: int) -> MakeConstraint:
    """The constraint of plain text."""
    document = requested_document(request)
    check_combination(request, document is not None)
    plan = _Plan("free" if document is None else "grammar", document)
    return partial(_make, front, request, plan, None, vocab_size)


def chat_constraint(
    front: ModelFront, chat: ChatRequest, thinking: ThinkingChoice, prompt_tail: str, vocab_size: int
) -> MakeConstraint:
    """The constraint of an answer in a conversation. ``prompt_tail``: the text of the end of the prompt."""
    document, choice = requested_document(chat), choose_tools(chat)
    called = front.output.called_family if choice.tools else None
    if choice.mode == "required" and called is None:
        raise unsupported("tool_choice", "the server reads no tool calls (--tool-call-parser none)")
    if document is not None and choice.mode == "required":
        raise invalid(document.path, "excludes a required tool call", "unsupported_combination")
    calls = None if called is None else _calls(front, chat, choice, called, document)
    triggered = calls is not None and document is None and choice.mode == "auto"
    enforced = document is not None or (calls is not None and not triggered)
    check_combination(chat, enforced)
    start: Start = "grammar" if enforced else "free"
    if front.family is not None:
        begins = answer_start(front.family, prompt_tail, thinking.mode)
        start = start if begins == "text" else begins
    banned: tuple[int, ...] = ()
    if called is not None and choice.mode == "none":
        banned = tuple(front.tokenizer.ids_of([TRIGGER[called]]).values())
    plan = _Plan(start, document, calls, triggered, thinking.budget, banned)
    return partial(_make, front, chat, plan, front.family, vocab_size)


def _calls(
    front: ModelFront, chat: ChatRequest, choice: ToolChoice, family: Family, document: Document | None
) -> Calls | None:
    """The calls that a grammar rules: those that must follow it, and those that may stand for a document."""
    marker_ids = front.tokenizer.ids_of(MARKERS[family])
    missing = [text for text in MARKERS[family] if text not in marker_ids]
    calls = enforced_calls(chat, choice, family, marker_ids)
    if calls is not None and missing:
        raise unsupported("tools", f"enforced calls need the token {missing[0]}, which the model lacks")
    if calls is None and document is not None and choice.mode == "auto" and not missing:
        tools = [CallTool(tool.function.name, None, False, "tools") for tool in chat.tools or ()]
        calls = Calls(family, tools, choice.most, marker_ids)
    # A grammar of the client has a start of its own.
    return None if document is not None and document.kind == "grammar" else calls


def _make(
    front: ModelFront, request: Generate, plan: _Plan, family: Family | None, vocab_size: int
) -> Constraint | None:
    """``family``: the notation in which the answer is read."""
    allowed, bad = _allowed(request, vocab_size), _bad_words(request, front.tokenizer)
    start, budget, built = plan.start, plan.budget, None
    if start not in ("thought", "choice"):
        budget = None
    if plan.document is not None or plan.calls is not None:
        try:
            with time_limit(BUILD_SECONDS):
                built = build(plan.document, plan.calls, family=family, after_trigger=plan.triggered)
        except SchemaError as error:
            raise ApiError(error.code, clip(str(error), 240), error.path or None) from None
    elif budget is None:
        if not plan.banned and not bad and allowed is None:
            return None
        start = "free"
    return make_constraint(
        front.tokenizer,
        family,
        built,
        start,
        triggered=plan.triggered,
        repeat=plan.calls is None or plan.calls.most > 1,
        thought_budget=budget,
        allowed_ids=allowed,
        banned_ids=list(plan.banned),
        bad_sequences=bad,
    )


def _allowed(request: Generate, vocab_size: int) -> list[int] | None:
    ids = request.allowed_token_ids
    if ids is None:
        return None
    if not ids or any(not 0 <= i < vocab_size for i in ids):
        raise invalid("allowed_token_ids", f"must be token ids below {vocab_size}, at least one")
    return ids


def _bad_words(request: Generate, tokenizer: Tokenizer) -> list[list[int]]:
    """Each word as it is tokenised at the start of a text and behind a space."""
    words = request.bad_words or []
    if len(words) > MAX_BAD_WORDS or not all(0 < len(word) <= MAX_BAD_CHARS for word in words):
        limits = f"at most {MAX_BAD_WORDS} strings of 1 to {MAX_BAD_CHARS} characters"
        raise invalid("bad_words", f"must be {limits}")
    found = []
    for word in words:
        for text in (word, " " + word.lstrip()):
            ids = tokenizer.encode_plain(text)
            if ids and ids not in found:
                found.append(ids)
    return found
