"""When a constraint begins and ends: thoughts, triggers, budgets, banned words."""

from __future__ import annotations

import numpy as np
import pytest

from grammar.helpers import Model, calls, document, draw, model, read, tool
from mmx.grammar import Calls, build
from mmx.grammar.build import MARKERS, TRIGGER, Family
from mmx.grammar.constraint import THOUGHT_TAGS, make_constraint
from mmx.grammar.sequence import GrammarError, Sequence, compile_grammar
from mmx.grammar.vocabulary import allows
from mmx.protocol import Constraint

FLAG = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
FAMILIES: list[Family] = ["m2", "m3"]


class Driver:
    """A sequence that is told its tokens."""

    def __init__(self, m: Model, constraint: Constraint, limit: int = 400) -> None:
        self.model = m
        prototype = compile_grammar(m.vocabulary, constraint.grammar) if constraint.grammar else None
        self.sequence = Sequence(m.vocabulary, constraint, prototype, limit)
        self.row = np.zeros(m.vocabulary.num_words, np.int32)

    def may(self, token_id: int) -> bool:
        return not self.sequence.fill(self.row) or allows(self.row, token_id)

    @property
    def free(self) -> bool:
        return not self.sequence.fill(self.row)

    def say(self, text: str) -> None:
        """Take the tokens of ``text``, each of which must be allowed."""
        for token_id in self.model.tokenizer.encode(text):
            assert self.may(token_id), f"{self.model.tokenizer.decode([token_id], False)!r} of {text!r}"
            self.sequence.advance(token_id)


def control(m: Model, text: str) -> int:
    return m.tokenizer.control_ids[text]


def triggered(m: Model, *, most: int) -> Constraint:
    ids = m.tokenizer.ids_of(MARKERS[m.family])
    built = build(None, Calls(m.family, [tool("f", FLAG)], most, ids), after_trigger=True)
    return make_constraint(m.tokenizer, m.family, built, "free", triggered=True, repeat=most > 1)


CALL = {
    "m2": '<minimax:tool_call>\n<invoke name="f">\n<parameter name="on">true</parameter>\n</invoke>\n'
    "</minimax:tool_call>",
    "m3": ']<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name="f">]<]minimax[>[<on>true]<]minimax[>[</on>'
    "]<]minimax[>[</invoke>\n]<]minimax[>[</tool_call>",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_is_ruled_from_its_opener_on_and_text_is_not(family: Family) -> None:
    m = model(family)
    driver = Driver(m, triggered(m, most=4))
    driver.say("Let me see, {\n")
    assert driver.free
    opener = control(m, TRIGGER[family])
    driver.sequence.advance(opener)
    assert not driver.may(m.tokenizer.eos_token_ids[0])
    assert not driver.may(m.tokenizer.encode_plain("x")[0])
    again = Driver(m, triggered(m, most=4))
    again.say(CALL[family])
    assert again.free
    again.say("and another one" + CALL[family])
    assert again.free


@pytest.mark.parametrize("family", FAMILIES)
def test_after_a_single_call_only_the_end_is_left(family: Family) -> None:
    m = model(family)
    driver = Driver(m, triggered(m, most=1))
    driver.say("I call." + CALL[family])
    assert driver.may(m.tokenizer.eos_token_ids[0])
    assert not driver.may(m.tokenizer.encode_plain("x")[0])


def test_what_fits_is_not_cut_short() -> None:
    """Near the limit texts and numbers end early only where the rest would not fit behind them."""
    m = model("m3")
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    ns = "]<]minimax[>["
    opening = f'{ns}<tool_call>\n{ns}<invoke name="get_weather">{ns}<city>'
    ending = f"{ns}</city>{ns}</invoke>\n{ns}</tool_call>"
    constraint = calls(m, [tool("get_weather", city)], "grammar", most=1)
    Driver(m, constraint, 100).say(opening + "Paris" + ending)
    number = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    rule = document(m, number, "grammar")
    Driver(m, rule, rule.reserve + len(m.tokenizer.encode('{"n": '))).say('{"n": 4213}')
    endless = Driver(m, constraint, 100)
    endless.say(opening)
    (letter,), count = m.tokenizer.encode_plain("q"), 0
    while endless.may(letter):
        endless.sequence.advance(letter)
        count += 1
    assert count < 50
    endless.say(ending)


def test_looks_for_the_end_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other sequence waits for the masks of a step."""
    looks: list[Sequence] = []
    match = Sequence._match
    monkeypatch.setattr(Sequence, "_match", lambda self, row: (looks.append(self), match(self, row))[1])
    m = model("m3")
    driver = Driver(m, document(m, {"const": "x" * 3900}, "grammar"), 40)
    driver.say('"')
    driver.sequence.fill(driver.row)
    assert 200 < len(looks) < 300


def test_a_number_that_could_only_go_on_to_an_excluded_one() -> None:
    limits = {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10}
    schema = {"type": "object", "properties": {"a": limits}, "required": ["a"]}
    ns = "]<]minimax[>["
    driver = Driver(model("m3"), calls(model("m3"), [tool("f", schema)], "grammar", most=1))
    driver.say(f'{ns}<tool_call>\n{ns}<invoke name="f">{ns}<a>1{ns}</a>{ns}</invoke>\n{ns}</tool_call>')


@pytest.mark.parametrize("family", FAMILIES)
def test_a_thought_is_free_text_without_an_early_end(family: Family) -> None:
    m = model(family)
    driver = Driver(m, document(m, FLAG, "thought"))
    driver.say('I think of {"on": 3} and more.')
    assert not driver.may(m.tokenizer.eos_token_ids[0])
    assert not driver.may(control(m, TRIGGER[family]))
    driver.say(THOUGHT_TAGS[family][1] + ("\n\n" if family == "m2" else ""))
    assert not driver.may(m.tokenizer.encode_plain("x")[0])
    driver.say('{"on": true}')
    assert driver.may(m.tokenizer.eos_token_ids[0])


def test_an_adaptive_answer_may_think_close_or_begin() -> None:
    m = model("m3")
    for beginning in ("<mm:think>hm</mm:think>", "</mm:think>", ""):
        driver = Driver(m, document(m, FLAG, "choice"))
        driver.say(beginning + '{"on": false}')
        assert driver.may(m.tokenizer.eos_token_ids[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_budget_of_a_thought_is_kept(family: Family) -> None:
    m = model(family)
    constraint = make_constraint(m.tokenizer, family, None, "thought", thought_budget=5)
    for seed in range(5):
        drawn = draw(m, constraint, 200, seed)
        close = control(m, THOUGHT_TAGS[family][1])
        if close in drawn.token_ids:
            assert drawn.token_ids.index(close) <= 5 + len(constraint.thought_end)
        else:
            assert drawn.ended and len(drawn.token_ids) <= 5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_thought_leaves_room_for_what_must_follow(family: Family) -> None:
    m = model(family)
    for seed in range(10):
        drawn = draw(m, calls(m, [tool("f", FLAG)], "thought"), 160, seed)
        assert drawn.ended
        assert read(m, "thought", drawn, [tool("f", FLAG)]).tool_calls


def test_names_of_a_map_are_repeated_and_used_once() -> None:
    m = model("m3")
    schema = {"type": "object", "additionalProperties": {"type": "integer"}}
    ns = "]<]minimax[>["
    head = f'{ns}<tool_call>\n{ns}<invoke name="f">{ns}<ab>1{ns}'
    driver = Driver(m, calls(m, [tool("f", schema)], "grammar"))
    driver.say(head + "</a")
    assert driver.may(m.vocabulary.id_of[b"b"]) and not driver.may(m.vocabulary.id_of[b"c"])
    assert not driver.may(m.vocabulary.id_of[b">"])
    driver.say(f"b>{ns}<ab")
    assert not driver.may(m.vocabulary.id_of[b">"])
    driver.say(f"c>2{ns}</abc>{ns}</invoke>\n{ns}</tool_call>")
    assert driver.may(m.tokenizer.eos_token_ids[0])


def test_bad_sequences_are_never_completed() -> None:
    m = model("m3")
    ids = [m.tokenizer.encode_plain(word)[0] for word in ("x", "y", "z")]
    constraint = Constraint(start="free", bad_sequences=[[ids[0], ids[1]], [ids[2]]])
    driver = Driver(m, constraint)
    assert driver.may(ids[1]) and not driver.may(ids[2])
    driver.sequence.advance(ids[0])
    assert not driver.may(ids[1])
    driver.sequence.advance(ids[0])
    assert not driver.may(ids[1])
    driver.sequence.advance(5)
    assert driver.may(ids[1])


def test_allowed_ids_bound_a_grammar_too() -> None:
    m = model("m3")
    yes = m.tokenizer.encode_plain("y")
    driver = Driver(m, Constraint(grammar='start: "y" | "n"\n', allowed_ids=[*yes, 5]))
    assert driver.may(yes[0]) and not driver.may(m.tokenizer.encode_plain("n")[0])
    with pytest.raises(GrammarError, match="no token satisfies"):
        Driver(m, Constraint(grammar='start: "y"\n', allowed_ids=[5])).may(5)


def test_a_grammar_that_can_not_be_used_is_an_error_in_one_sentence() -> None:
    with pytest.raises(GrammarError, match="the grammar can not be used") as caught:
        compile_grammar(model("m3").vocabulary, "start: nowhere\n")
    assert "\n" not in str(caught.value)
    # Seen before the request's first step, which would else fail as if the server were at fault.
    with pytest.raises(GrammarError, match="the grammar can not be used: no text fits it"):
        compile_grammar(model("m3").vocabulary, "start: T\nT: /a/ & /b/\n")
