"""The text side of the model: tokenizer, chat template and sampling defaults of one checkpoint."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmx.errors import ConfigError
from mmx.server.output import OutputFormat
from mmx.server.sampling import sampling_defaults
from mmx.server.settings import ServerConfig
from mmx.tokenizer import ChatTemplate, Family, IncrementalDetokenizer, Tokenizer

log = logging.getLogger("mmx.server")


@dataclass(frozen=True, kw_only=True)
class ModelFront:
    """Everything between text and token ids. ``defaults`` are the sampling fields of the
    checkpoint; ``longest_token`` is the most bytes that one token can stand for."""

    tokenizer: Tokenizer
    template: ChatTemplate
    output: OutputFormat
    defaults: dict[str, Any]
    longest_token: int

    @classmethod
    def load(cls, config: ServerConfig, folder: Path) -> ModelFront:
        """Read the files of the checkpoint; ConfigError in one sentence if one can not be used."""
        try:
            tokenizer = Tokenizer(folder)
            markers, variables = tokenizer.control_ids, tokenizer.special_token_texts
            given = config.model.chat_template
            if given is not None:
                template = ChatTemplate(_template_text(given), markers=markers, variables=variables)
            else:
                template = ChatTemplate.from_checkpoint(folder, markers=markers, variables=variables)
            defaults = sampling_defaults(folder) if config.model.generation_config == "auto" else {}
        except ConfigError:
            raise
        except (ValueError, OSError) as error:
            raise ConfigError(str(error)) from None
        log.info("family %s, sampling defaults %s", template.family or "unknown", defaults or "of OpenAI")
        output = OutputFormat.choose(config.answer, template.family, tokenizer)
        longest = max(len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size))
        return cls(
            tokenizer=tokenizer, template=template, output=output, defaults=defaults, longest_token=longest
        )

    @property
    def family(self) -> Family | None:
        """ "m2", "m3" or None."""
        return self.template.family

    def detokenizer(self, *, skip_special_tokens: bool, for_reader: bool) -> IncrementalDetokenizer:
        """A fresh one; a reader of the output sees the markers whatever the client asked for."""
        keep = tuple(self.output.marker_ids.values()) if for_reader else ()
        return IncrementalDetokenizer(self.tokenizer, skip_special_tokens=skip_special_tokens, keep=keep)


def _template_text(given: str) -> str:
    path = Path(given)
    if "\n" not in given and "{" not in given:
        if not path.is_file():
            raise ConfigError(
                f"--chat-template must be a file or the text of a template, there is no file {given!r}"
            )
        return path.read_text(encoding="utf-8")
    return given
