"""The table of flags as text for people: ``--help`` and the pages under docs/."""

from __future__ import annotations

from mmx.server.flag_kinds import BOOL, Flag
from mmx.server.flags import FLAGS


def help_text() -> str:
    """What ``--help`` prints."""
    lines = ["usage: mmx serve [MODEL] [flags]   (also: python -m mmx.server)"]
    section = None
    for flag in FLAGS.flags.values():
        if flag.section != section:
            section = flag.section
            lines += ["", f"{section}:"]
        value = "" if flag.kind is BOOL else " " + ("|".join(flag.choices) or flag.kind.name.upper())
        shown = f" (default: {_default(flag)})" if _default(flag) else ""
        lines.append(f"  {flag.spelling}{value}{' ...' if flag.many else ''}")
        lines.append(f"      {flag.help}{shown}")
        if flag.aliases or flag.negations:
            also = [*flag.aliases, *flag.negations]
            lines.append("      also: " + ", ".join("--" + name.replace("_", "-") for name in also))
    lines += ["", "Every flag can be set as MMX_<FLAG> in the environment and in the file of --config."]
    return "\n".join(lines)


def help_markdown() -> str:
    """The same as a table for the documentation (``--help=markdown``)."""
    lines = []
    section = None
    for flag in FLAGS.flags.values():
        if flag.section != section:
            section = flag.section
            lines += [
                "",
                f"### {section}",
                "",
                "| flag | other spellings | default | meaning |",
                "| --- | --- | --- | --- |",
            ]
        also = ", ".join(f"`--{name.replace('_', '-')}`" for name in (*flag.aliases, *flag.negations))
        default = f"`{_default(flag)}`" if _default(flag) else ""
        choices = f" ({', '.join(flag.choices)})" if flag.choices else ""
        lines.append(f"| `{flag.spelling}` | {also} | {default} | {flag.help}{choices} |")
    return "\n".join(lines[1:]) + "\n"


def _default(flag: Flag) -> str:
    """The default as a user would write it, empty if there is none."""
    if flag.default in (None, "", (), {}):
        return ""
    return " ".join(flag.default) if flag.many else str(flag.default)
