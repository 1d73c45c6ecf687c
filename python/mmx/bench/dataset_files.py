"""Prompts from files: `custom` (JSON lines) and `sharegpt`."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random
from typing import Annotated, Any

import msgspec

from mmx.bench.dataset import Sample
from mmx.bench.options import Options
from mmx.tokenizer import ChatTemplate, Tokenizer

MIN_SHAREGPT_TOKENS = 4
MAX_SHAREGPT_PROMPT = 1024
MAX_SHAREGPT_SUM = 2048


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    output_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    body: dict[str, Any] | None = None


def custom_samples(options: Options, tokenizer: Tokenizer | None) -> list[Sample]:
    """JSON lines ``{"prompt" or "messages" or "body", "output_tokens"?, "tools"?}``, in the order of the
    file. ``body`` is a whole request; only its model and its streaming are set here.

    ValueError names the line that is wrong.
    """
    assert options.dataset_path is not None
    path = Path(options.dataset_path)
    texts = [(i, text) for i, text in enumerate(path.read_bytes().splitlines(), 1) if text.strip()]
    lines = [_line(f"{path}:{i}", text, options) for i, text in texts[: options.num_prompts]]
    if not lines:
        raise ValueError(f"--dataset-path: {path} has no lines")
    _note_fewer(len(lines), options)
    if not options.use_chat_template:
        return [_as_is(line, options, tokenizer) for line in lines]
    if tokenizer is None:
        raise ValueError("--use-chat-template: it needs --tokenizer FOLDER")
    template = ChatTemplate.from_checkpoint(
        tokenizer.folder, markers=tokenizer.control_ids, variables=tokenizer.special_token_texts
    )
    return [_rendered(line, options, tokenizer, template) for line in lines]


def _line(where: str, text: bytes, options: Options) -> _Line:
    try:
        line = msgspec.json.decode(text, type=_Line)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{where}: {error}") from None
    if sum(part is not None for part in (line.prompt, line.messages, line.body)) != 1:
        raise ValueError(f"{where}: expected one of prompt, messages and body")
    if line.messages is not None and not (options.is_chat or options.use_chat_template):
        raise ValueError(f"{where}: messages need --backend openai-chat or --use-chat-template")
    if line.tools is not None and not (options.is_chat or options.use_chat_template):
        raise ValueError(f"{where}: tools need --backend openai-chat or --use-chat-template")
    if line.body is not None and options.use_chat_template:
        raise ValueError(f"{where}: a body is sent as it is, --use-chat-template can not render it")
    return line


def _as_is(line: _Line, options: Options, tokenizer: Tokenizer | None) -> Sample:
    prompt: str | list[int] | None = line.prompt
    ids = None
    if line.prompt is not None and tokenizer is not None:
        ids = tokenizer.encode_plain(line.prompt)
    if options.tokenize_on_client and line.prompt is not None:
        if ids is None:
            raise ValueError("--tokenize-on-client: it needs --tokenizer FOLDER")
        prompt = ids
    return Sample(
        prompt=prompt,
        messages=line.messages,
        tools=line.tools,
        body=line.body,
        input_len=None if ids is None else len(ids),
        output_len=line.output_tokens or options.custom_output_len,
    )


def _rendered(line: _Line, options: Options, tokenizer: Tokenizer, template: ChatTemplate) -> Sample:
    messages = line.messages or [{"role": "user", "content": line.prompt}]
    ids = tokenizer.encode_rendered(template.render(messages, tools=line.tools))
    return Sample(prompt=ids, input_len=len(ids), output_len=line.output_tokens or options.custom_output_len)


class _Turn(msgspec.Struct):
    value: str


class _Conversation(msgspec.Struct):
    conversations: list[_Turn] = []


def sharegpt_samples(options: Options, tokenizer: Tokenizer, rng: Random) -> list[Sample]:
    """A JSON list of conversations, shuffled: the first turn is the prompt, the second gives the length of
    the answer. Very short and very long ones are left out."""
    assert options.dataset_path is not None
    path = Path(options.dataset_path)
    try:
        conversations = msgspec.json.decode(path.read_bytes(), type=list[_Conversation])
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: {error}") from None
    usable = [c.conversations for c in conversations if len(c.conversations) >= 2]
    rng.shuffle(usable)
    samples: list[Sample] = []
    for turns in usable:
        if len(samples) == options.num_prompts:
            break
        sample = _conversation(turns, options, tokenizer)
        if sample is not None:
            samples.append(sample)
    if not samples:
        raise ValueError(f"--dataset-path: {path} has no conversation of a usable length")
    _note_fewer(len(samples), options)
    return samples


def _conversation(turns: list[_Turn], options: Options, tokenizer: Tokenizer) -> Sample | None:
    ids = tokenizer.encode_plain(turns[0].value)
    given = options.sharegpt_output_len
    output_len = given or len(tokenizer.encode_plain(turns[1].value))
    too_short = min(len(ids), output_len if given is None else len(ids)) < MIN_SHAREGPT_TOKENS
    too_long = len(ids) > MAX_SHAREGPT_PROMPT or (given is None and len(ids) + output_len > MAX_SHAREGPT_SUM)
    if too_short or too_long:
        return None
    prompt = ids if options.tokenize_on_client else turns[0].value
    return Sample(prompt=prompt, input_len=len(ids), output_len=output_len)


def _note_fewer(num_found: int, options: Options) -> None:
    """Why not repeat: a repeated prompt would measure the prefix cache."""
    if num_found < options.num_prompts:
        print(f"{options.dataset_path}: {num_found} requests, --num-prompts asks for more", file=sys.stderr)
