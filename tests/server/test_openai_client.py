"""The official OpenAI client drives chat and completions against the real application."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from server.helpers import EOS, MODEL, TOKENIZER, ScriptedEngine, Server, serving

USER = [{"role": "user", "content": "Say hello."}]


async def test_chat_whole() -> None:
    async with serving() as server:
        answer = await server.openai.chat.completions.create(model=MODEL, messages=USER)
        assert answer.object == "chat.completion"
        assert answer.id.startswith("chatcmpl-")
        assert answer.model == MODEL
        (choice,) = answer.choices
        assert choice.message.role == "assistant"
        assert choice.message.content == "Hello there."
        assert choice.finish_reason == "stop"
        assert answer.usage.completion_tokens == len(TOKENIZER.encode("Hello there.")) + 1
        assert answer.usage.prompt_tokens == len(server.engine.submitted[0].prompt_token_ids)
        assert answer.usage.prompt_tokens_details.cached_tokens == 64
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_chat_stream_equals_whole() -> None:
    async with serving(ScriptedEngine("Grüße, 世界! 🎉")) as server:
        whole = await server.openai.chat.completions.create(model=MODEL, messages=USER)
        stream = await server.openai.chat.completions.create(
            model=MODEL, messages=USER, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == whole.choices[0].message.content == "Grüße, 世界! 🎉"
        assert chunks[0].choices[0].delta.role == "assistant"
        assert all(c.choices[0].delta.role is None for c in chunks[1:-1])
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert [c.usage is None for c in chunks] == [True] * (len(chunks) - 1) + [False]
        assert chunks[-1].choices == []
        assert chunks[-1].usage == whole.usage
        assert len({c.id for c in chunks}) == 1


async def test_chunks_can_be_counted_against_tokens() -> None:
    async with serving(ScriptedEngine("one two three four")) as server:
        stream = await server.openai.chat.completions.create(model=MODEL, messages=USER, stream=True)
        chunks = [chunk async for chunk in stream]
        assert len(chunks) == len(TOKENIZER.encode("one two three four")) + 1


async def test_stream_interval_groups_tokens() -> None:
    async with serving(ScriptedEngine("one two three four five six seven")) as server:
        create = server.openai.chat.completions.create
        stream = await create(model=MODEL, messages=USER, stream=True, extra_body={"stream_interval": 4})
        texts = [chunk.choices[0].delta.content async for chunk in stream]
        ids = TOKENIZER.encode("one two three four five six seven")
        assert texts[0] == TOKENIZER.decode(ids[:1])
        assert texts[1] == TOKENIZER.decode(ids[1:5])
        assert "".join(text or "" for text in texts) == "one two three four five six seven"


async def test_continuous_usage() -> None:
    async with serving(ScriptedEngine("a b c")) as server:
        stream = await server.openai.chat.completions.create(
            model=MODEL, messages=USER, stream=True, stream_options={"continuous_usage_stats": True}
        )
        counts = [chunk.usage.completion_tokens async for chunk in stream]
        assert counts == sorted(counts)
        assert counts[-1] == len(TOKENIZER.encode("a b c")) + 1


async def test_tokens_of_a_hidden_thought_are_not_lost_in_a_stream() -> None:
    async with serving(ScriptedEngine("<mm:think>Need it.</mm:think>Yes.")) as server:
        create = server.openai.chat.completions.create
        more = {"include_reasoning": False, "return_token_ids": True}
        whole = await create(model=MODEL, messages=USER, logprobs=True, extra_body=more)
        stream = await create(model=MODEL, messages=USER, logprobs=True, stream=True, extra_body=more)
        choices = [chunk.choices[0] async for chunk in stream]
        ids = [i for choice in choices for i in choice.token_ids or ()]
        assert ids == whole.choices[0].token_ids
        entries = [entry for choice in choices for entry in choice.logprobs.content]
        assert entries == whole.choices[0].logprobs.content
        assert choices[0].delta.content == "Yes"


async def test_logprobs() -> None:
    async with serving(ScriptedEngine("Hi.")) as server:
        answer = await server.openai.chat.completions.create(
            model=MODEL, messages=USER, logprobs=True, top_logprobs=3
        )
        entries = answer.choices[0].logprobs.content
        assert [e.token for e in entries] == [
            TOKENIZER.token_bytes(i).decode() for i in [*TOKENIZER.encode("Hi."), EOS]
        ]
        assert all(e.logprob == -0.5 and len(e.top_logprobs) == 3 for e in entries)
        assert bytes(entries[0].bytes) == TOKENIZER.token_bytes(TOKENIZER.encode("Hi.")[0])

        stream = await server.openai.chat.completions.create(
            model=MODEL, messages=USER, logprobs=True, stream=True
        )
        streamed = [e async for chunk in stream for e in chunk.choices[0].logprobs.content]
        assert [e.token for e in streamed] == [e.token for e in entries]
        assert all(e.top_logprobs == [] for e in streamed)


async def test_stop_strings_do_not_end_an_answer_below_min_tokens() -> None:
    """As in `mmx.LLM`, a stop string counts if it begins behind them."""
    text = "one STOP two three STOP four"
    num_first = len(TOKENIZER.encode("one STOP"))
    async with serving(ScriptedEngine(text)) as server:
        for fewest, expected in ((0, "one "), (1, "one "), (num_first, "one STOP two three ")):
            more = {"min_tokens": fewest}
            chat = server.openai.chat.completions.create
            answer = await chat(model=MODEL, messages=USER, stop="STOP", extra_body=more)
            assert (answer.choices[0].message.content, answer.choices[0].stop_reason) == (expected, "STOP")
            plain = await server.openai.completions.create(
                model=MODEL, prompt="a", max_tokens=50, stop="STOP", extra_body=more
            )
            assert (plain.choices[0].text, plain.choices[0].stop_reason) == (expected, "STOP")


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_string(stream: bool) -> None:
    async with serving(ScriptedEngine("one two STOP three four")) as server:
        answer = await server.openai.chat.completions.create(
            model=MODEL, messages=USER, stop=["STOP"], stream=stream
        )
        if stream:
            chunks = [chunk async for chunk in answer]
            text = "".join(c.choices[0].delta.content or "" for c in chunks)
            last = chunks[-1].choices[0]
        else:
            last = answer.choices[0]
            text = last.message.content
        assert text == "one two "
        assert last.finish_reason == "stop"
        assert last.stop_reason == "STOP"
        await server.idle()


async def test_stop_string_included() -> None:
    async with serving(ScriptedEngine("one two STOP three")) as server:
        answer = await server.openai.chat.completions.create(
            model=MODEL, messages=USER, stop="STOP", extra_body={"include_stop_str_in_output": True}
        )
        assert answer.choices[0].message.content == "one two STOP"


async def test_n_choices_have_their_own_seeds() -> None:
    def script(message):
        return [*TOKENIZER.encode(f"seed {message.params.seed}"), EOS]

    async with serving(ScriptedEngine(script)) as server:
        create = server.openai.chat.completions.create
        answer = await create(model=MODEL, messages=USER, n=3, seed=2**63 - 1)
        assert [c.message.content for c in answer.choices] == [
            f"seed {2**63 - 1}",
            f"seed {-(2**63)}",
            f"seed {-(2**63) + 1}",
        ]
        assert answer.usage.prompt_tokens == len(server.engine.submitted[0].prompt_token_ids)
        stream = await create(model=MODEL, messages=USER, n=3, stream=True)
        texts = ["", "", ""]
        ends = []
        async for chunk in stream:
            (choice,) = chunk.choices
            texts[choice.index] += choice.delta.content or ""
            ends += [choice.index] * (choice.finish_reason is not None)
        assert texts == ["seed None"] * 3
        assert sorted(ends) == [0, 1, 2]


async def test_max_tokens_ends_with_length() -> None:
    async with serving(ScriptedEngine("a long story about nothing")) as server:
        answer = await server.openai.chat.completions.create(model=MODEL, messages=USER, max_tokens=2)
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 2


async def _only_the_prompt(server: Server) -> None:
    """``max_tokens: 0`` with ``echo``: how likely is this text?"""
    create = server.openai.completions.create
    fields: dict[str, Any] = {"model": MODEL, "prompt": "This is it", "echo": True, "max_tokens": 0}
    scored = await create(**fields, logprobs=1)
    (choice,) = scored.choices
    assert (choice.text, choice.finish_reason) == ("This is it", "length")
    tokens = len(TOKENIZER.encode("This is it"))
    assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs) == tokens
    assert (scored.usage.prompt_tokens, scored.usage.completion_tokens) == (tokens, 0)
    chunks = [chunk async for chunk in await create(**fields, stream=True)]
    assert [(c.choices[0].text, c.choices[0].finish_reason) for c in chunks] == [("This is it", "length")]
    with pytest.raises(openai.BadRequestError, match="max_tokens must be at least 1, got 0"):
        await create(**{**fields, "echo": False})
    with pytest.raises(openai.BadRequestError, match="max_tokens must be at least 0, got -1"):
        await create(**{**fields, "max_tokens": -1})


async def test_completions() -> None:
    async with serving(ScriptedEngine(" and so on")) as server:
        create = server.openai.completions.create
        one = await create(model=MODEL, prompt="This", echo=True)
        assert one.object == "text_completion"
        assert one.choices[0].text == "This and so on"
        ids = TOKENIZER.encode("This")
        await _only_the_prompt(server)
        two = await create(model=MODEL, prompt=["This", "That"], n=2, temperature=1)
        assert [c.index for c in two.choices] == [0, 1, 2, 3]
        await create(model=MODEL, prompt=ids)
        assert server.engine.submitted[-1].prompt_token_ids == ids
        await create(model=MODEL, prompt=[ids, ids[:1]])
        assert server.engine.submitted[-1].prompt_token_ids == ids[:1]
        assert server.engine.submitted[-1].params.max_tokens == 16
        stream = await create(model=MODEL, prompt="This", stream=True, logprobs=2)
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].text for c in chunks) == " and so on"
        offsets = [o for c in chunks for o in c.choices[0].logprobs.text_offset]
        assert offsets == sorted(offsets)
        assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("as_ids", [False, True])
async def test_offsets_are_places_in_the_text(as_ids: bool) -> None:
    text = " Grüße 👋🏽 é!"
    async with serving(ScriptedEngine(text)) as server:
        fields: Any = {"model": MODEL, "prompt": "🎉 so", "max_tokens": 50, "logprobs": 0}
        fields["extra_body"] = {"return_tokens_as_token_ids": as_ids}
        (echoed,) = (await server.openai.completions.create(**fields, echo=True)).choices
        assert echoed.text == "🎉 so" + text
        ids = [*TOKENIZER.encode("🎉 so"), *TOKENIZER.encode(text), EOS]
        ends = [TOKENIZER.decode(ids[:i]).rstrip("\ufffd") for i in range(len(ids))]
        assert echoed.logprobs.text_offset == [len(end) for end in ends]
        stream = await server.openai.completions.create(**fields, stream=True)
        offsets = [o async for chunk in stream for o in chunk.choices[0].logprobs.text_offset]
        num_prompt = len(TOKENIZER.encode("🎉 so"))
        assert offsets == [o - len("🎉 so") for o in echoed.logprobs.text_offset[num_prompt:]]


async def test_ids_are_echoed_as_the_text_they_stand_for() -> None:
    text = "]~b]user\nHello[e~["
    async with serving(ScriptedEngine(" there")) as server:
        for prompt in (text, TOKENIZER.encode(text)):
            create = server.openai.completions.create
            (choice,) = (await create(model=MODEL, prompt=prompt, echo=True, logprobs=0)).choices
            assert choice.text == text + " there"
            places = zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True)
            assert all(choice.text.startswith(token, at) for token, at in places if token != "[e~[")


async def test_models_and_errors() -> None:
    async with serving(None, "--served-model-name", "org/Tiny-Model", "second") as server:
        names = [model.id async for model in server.openai.models.list()]
        assert names == ["org/Tiny-Model", "second"]
        assert (await server.openai.models.retrieve("org/Tiny-Model")).max_model_len == 4096
        for name in ("second", "tiny-model", "other/TINY-MODEL"):
            answer = await server.openai.chat.completions.create(model=name, messages=USER)
            assert answer.model == name
        for name in ("gpt-x", ""):
            with pytest.raises(openai.NotFoundError) as missing:
                await server.openai.chat.completions.create(model=name, messages=USER)
            assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as bad:
            await server.openai.chat.completions.create(model="second", messages=USER, temperature=3)
        assert (bad.value.param, bad.value.code) == ("temperature", "invalid_value")
