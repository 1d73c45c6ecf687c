"""Renders a conversation with the chat template of a checkpoint, in jinja2's immutable sandbox.

Caller text is hidden before rendering (see `mmx.tokenizer.user_text`), so the result knows which control
tokens are the template's own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame, optimizeconst
from jinja2.ext import loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mmx.tokenizer.messages import ChatTemplateError, Family, normalize_messages, normalize_tools
from mmx.tokenizer.user_text import (
    MarkerAlphabet,
    RenderedPrompt,
    UserText,
    check_unicode,
    concat,
    join,
    shown,
    unwrap,
    wrap,
)

_REFERENCE = {"m2": "minimax_m2.jinja", "m3": "minimax_m3.jinja"}
_PLANE_16 = re.compile("[\U00100000-\U0010ffff]")
_RESERVED = ("messages", "tools", "add_generation_prompt")


def detect_family(contains: Container[str]) -> Family | None:
    """Model family of a template text or of a tokenizer's control tokens; None if neither M2 nor M3.

    Why M3 first: its vocabulary is that of M2 with other strings, a mixed file is an M3 one.
    """
    if "<mm:think>" in contains or "]<]minimax[>[" in contains:
        return "m3"
    return "m2" if "<minimax:tool_call>" in contains else None


class ChatTemplate:
    """One compiled template.

    ``source``: jinja text. ``markers``: texts of the tokenizer's control tokens. ``variables``: constants the
    template may use (``bos_token`` ...). ``family``: derived from template and markers when None.
    ``max_output_chars`` bounds the rendered text, and every text a template builds on the way.
    """

    def __init__(
        self,
        source: str,
        *,
        markers: Iterable[str],
        family: Family | None = None,
        variables: Mapping[str, str] | None = None,
        max_output_chars: int = 32_000_000,
    ) -> None:
        self.source = source
        markers = tuple(markers)
        self.family = family or detect_family(source) or detect_family(markers)
        self._variables = dict(variables or {})
        self._alphabet = MarkerAlphabet(markers)
        self._max_output_chars = max_output_chars
        self._environment = _environment(self._alphabet, max_output_chars)
        self._compiled = self._compile(self._environment)

    @classmethod
    def from_checkpoint(
        cls, folder: str | Path, *, markers: Iterable[str], variables: Mapping[str, str] | None = None
    ) -> ChatTemplate:
        """Template of a checkpoint folder: ``chat_template.jinja``, else ``chat_template`` in
        ``tokenizer_config.json``, else our reference template for the family that ``markers`` belong to."""
        markers = tuple(markers)
        source = _checkpoint_source(Path(folder))
        if source is None:
            family = detect_family(markers)
            if family is None:
                raise ValueError(
                    f"chat template: {folder} has neither chat_template.jinja nor chat_template in "
                    "tokenizer_config.json, and its control tokens are not those of MiniMax M2 or M3"
                )
            source = reference_template(family)
        return cls(source, markers=markers, variables=variables)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
        allow_media: bool = False,
    ) -> RenderedPrompt:
        """Prompt text of a conversation; ``ChatTemplateError`` names the field at fault.

        ``continue_final_message``: the prompt ends inside the last message, which must be the assistant's.
        ``template_kwargs``: further template variables. ``enable_thinking`` also works where the template has
        no such variable: as ``thinking_mode`` on M3, by closing the opened thought on M2.
        """
        warnings: list[str] = []
        normal = normalize_messages(messages, family=self.family, allow_media=allow_media, warnings=warnings)
        normal_tools = normalize_tools(tools)
        kwargs = self._template_kwargs(template_kwargs or {})
        if continue_final_message:
            last = normal[-1]
            if last["role"] != "assistant" or not last["content"] or last.get("tool_calls"):
                raise ChatTemplateError(
                    "continue_final_message",
                    "needs an assistant message with text, without calls, at the end",
                )
            add_generation_prompt = False

        alphabet, compiled = self._for_input((normal, normal_tools, kwargs))
        wrapped = [{**wrap(message, alphabet), "role": message["role"]} for message in normal]
        context = {
            **self._variables,
            **wrap(kwargs, alphabet),
            "messages": wrapped,
            "tools": wrap(normal_tools, alphabet),
            "add_generation_prompt": add_generation_prompt,
        }
        text = self._run(compiled, context)
        if continue_final_message:
            text = _cut_after(text, wrapped[-1]["content"])
        elif self.family == "m2" and _thinking_is_off(kwargs) and text.endswith("<think>\n"):
            text = concat((text, "</think>\n\n"))
            warnings.append("thinking is disabled, which this model was not trained for")
        hidden = "".join((text,))
        try:
            check_unicode(hidden)
        except ValueError as error:
            raise ChatTemplateError("messages", str(error)) from None
        return RenderedPrompt(alphabet.show(hidden), hidden, alphabet, tuple(warnings))

    def _template_kwargs(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        for name in _RESERVED:
            if name in kwargs:
                raise ChatTemplateError(
                    f"chat_template_kwargs.{name}", "can not be set, it comes from the request itself"
                )
        if (
            self.family == "m3"
            and "thinking_mode" not in kwargs
            and isinstance(kwargs.get("enable_thinking"), bool)
        ):
            return {**kwargs, "thinking_mode": "enabled" if kwargs["enable_thinking"] else "disabled"}
        return dict(kwargs)

    def _for_input(self, values: Any) -> tuple[MarkerAlphabet, jinja2.Template]:
        """Alphabet and template for these values; a second pair is made only if their text already uses the
        private characters."""
        used = {
            ord(char) for text in _texts(values) if not text.isascii() for char in _PLANE_16.findall(text)
        }
        alphabet = self._alphabet.avoiding(used)
        if alphabet is self._alphabet:
            return self._alphabet, self._compiled
        if alphabet is None:
            raise ChatTemplateError("messages", "must not use all of Unicode plane 16 (private use)")
        return alphabet, self._compile(_environment(alphabet, self._max_output_chars))

    def _compile(self, environment: ImmutableSandboxedEnvironment) -> jinja2.Template:
        try:
            return environment.from_string(self.source)
        except jinja2.TemplateError as error:
            raise ValueError(f"chat template: {error}") from None

    def _run(self, compiled: jinja2.Template, context: dict[str, Any]) -> str:
        try:
            return compiled.render(context)
        except ChatTemplateError:
            raise
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            RecursionError,
        ) as error:
            # Why so wide: a template is a program we did not write; what it trips over came from the input.
            raise ChatTemplateError("messages", f"the chat template refuses them: {error}") from error


def reference_template(family: Family) -> str:
    """Our own template for a family, for checkpoints that ship none."""
    return (Path(__file__).parent / "templates" / _REFERENCE[family]).read_text("utf-8")


class _OriginKeepingGenerator(CodeGenerator):
    """Compiles ``a ~ b`` so that it keeps the origin of its parts; jinja2 would join plain strings."""

    @optimizeconst
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 (jinja2's name)
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _OriginKeepingGenerator


def _environment(alphabet: MarkerAlphabet, max_output_chars: int) -> ImmutableSandboxedEnvironment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.concat = _bounded_concat(max_output_chars)  # type: ignore[method-assign]
    environment.filters["tojson"] = _tojson(alphabet)
    environment.filters["join"] = _join_filter
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _bounded_concat(max_output_chars: int) -> Callable[[Iterable[object]], str]:
    def bounded(parts: Iterable[object]) -> str:
        taken: list[object] = []
        num_chars = 0
        for part in parts:
            text = part if isinstance(part, str) else str(part)
            num_chars += len(text)
            if num_chars > max_output_chars:
                raise ChatTemplateError(
                    "messages", f"the rendered prompt exceeds {max_output_chars} characters"
                )
            taken.append(text)
        return concat(taken)

    return bounded


def _tojson(alphabet: MarkerAlphabet) -> Callable[..., str]:
    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON without HTML escapes; the defaults write ", " and ": " and keep non-ASCII characters."""
        text = json.dumps(
            unwrap(value),
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )
        return UserText.from_user(text, alphabet)

    return tojson


@jinja2.pass_environment
def _join_filter(
    environment: jinja2.Environment, value: Iterable[Any], d: str = "", attribute: str | int | None = None
) -> str:
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    return join(value, d)


def _raise_exception(message: str) -> None:
    raise ChatTemplateError("messages", f"the chat template refuses them: {shown(message)}")


def _checkpoint_source(folder: Path) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text("utf-8")
    if not (folder / "tokenizer_config.json").is_file():
        return None
    found = json.loads((folder / "tokenizer_config.json").read_text("utf-8")).get("chat_template")
    if isinstance(found, list):
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    if found is not None and not isinstance(found, str):
        raise ValueError(f"chat template: chat_template in {folder}/tokenizer_config.json must be a string")
    return found


def _thinking_is_off(kwargs: Mapping[str, Any]) -> bool:
    if "thinking_mode" in kwargs:
        return bool(kwargs["thinking_mode"] == "disabled")
    return kwargs.get("enable_thinking") is False


def _cut_after(text: str, content: str) -> str:
    """``text`` up to the end of its last occurrence of ``content``."""
    position = str.rfind(text, content)  # in the hidden form: "[" must not be found in what ends the turn
    if position < 0:
        raise ChatTemplateError(
            "continue_final_message", "the chat template does not write the last message as it is"
        )
    return text[: position + len(content)]


def _texts(value: Any) -> Iterable[str]:
    """All strings inside a JSON-like value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, member in value.items():
            yield from _texts(key)
            yield from _texts(member)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)
