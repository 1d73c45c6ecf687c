"""Ids -> text -> parsed answer -> history -> ids: an answer sent back renders to the tokens it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmx.parsers import MARKERS, collect, make_parser
from mmx.tokenizer import IncrementalDetokenizer, StopStrings, Tokenizer
from mmx.tokenizer.messages import Family
from unit.tokenizer_helpers import NS, m2_folder, m3_tokenizer, reference_chat_template

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "plan",
            "parameters": {
                "type": "object",
                "properties": {
                    "text": {"type": "string"},
                    "days": {"type": "array", "items": {"type": "integer"}},
                    "opts": {"type": "object", "properties": {"car": {"type": "boolean"}}},
                },
            },
        },
    }
]
M2_CALL = (
    '\n<minimax:tool_call>\n<invoke name="plan">\n<parameter name="text">a <b> 日本\n</parameter>\n'
    '<parameter name="days">[1, 2]</parameter>\n<parameter name="opts">{"car": true}</parameter>\n</invoke>\n'
    '<invoke name="plan">\n</invoke>\n</minimax:tool_call>'
)
M3_CALL = (
    '@<tool_call>\n@<invoke name="plan">@<text>a <b> 日本\n@</text>@<days>@<item>1@</item>@<item>2@</item>'
    '@</days>@<opts>@<car>true@</car>@</opts>@</invoke>\n@<invoke name="plan">@</invoke>\n@</tool_call>'
).replace("@", NS)


@pytest.mark.parametrize(
    ("family", "mode", "output"),
    [
        ("m2", None, "Think it over. \n</think>\n\nAn answer." + M2_CALL),
        ("m2", None, "Think.\n</think>\n\n" + M2_CALL),
        ("m3", "enabled", "Think it over.\n</mm:think>An answer.\n\n" + M3_CALL),
        ("m3", "enabled", "Think.</mm:think>" + M3_CALL),
        ("m3", "enabled", "Think.</mm:think>Only an answer.\n"),
        ("m3", "disabled", " An answer. " + M3_CALL),
        ("m3", None, "<mm:think>Think.</mm:think>An answer." + M3_CALL),
        ("m3", None, "</mm:think>An answer."),
    ],
)
def test_answer_renders_to_its_own_tokens(
    family: Family, mode: str | None, output: str, tmp_path: Path
) -> None:
    tokenizer = m3_tokenizer() if family == "m3" else Tokenizer(m2_folder(tmp_path))
    template = reference_chat_template(family, list(tokenizer.control_ids))
    kwargs = {"thinking_mode": mode} if mode else {}
    history: list[dict[str, Any]] = [{"role": "user", "content": "Plan my trip."}]
    prompt = template.render(history, tools=TOOLS, template_kwargs=kwargs)
    generated = tokenizer.encode(output)

    markers = tokenizer.ids_of(MARKERS[family])
    detokenizer = IncrementalDetokenizer(tokenizer, keep=markers.values())
    stops = StopStrings([">\n\nnever", "</never>"])
    name = f"minimax_{family}"
    parser = make_parser(name, name, prompt=prompt.text, tools=TOOLS, marker_ids=markers)
    events = []
    for token_id in generated:
        for segment in detokenizer.feed_segments([token_id]):
            events += parser.feed(stops.feed(segment.text, release=segment.is_control), segment.token_ids)
    message = collect(
        events + parser.feed(stops.feed(detokenizer.finish()) + stops.finish(), [], finished=True)
    )

    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in message.tool_calls
    ]
    answer: dict[str, Any] = {"role": "assistant", "content": message.content, "reasoning": message.reasoning}
    if calls:
        answer["tool_calls"] = calls
    turn = template.render(
        [*history, answer], tools=TOOLS, template_kwargs=kwargs, add_generation_prompt=False
    )
    end = [*tokenizer.eos_token_ids, *tokenizer.encode("\n")]
    assert tokenizer.encode_rendered(turn) == [*tokenizer.encode_rendered(prompt), *generated, *end]
