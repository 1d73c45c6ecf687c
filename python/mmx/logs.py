"""Where log lines go and what they look like, in the server and in the processes of its engine."""

from __future__ import annotations

import json
import logging
import sys
import time


class _JsonFormatter(logging.Formatter):
    def __init__(self, who: str) -> None:
        super().__init__()
        self._who = who

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name + self._who,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_logging(level: str, form: str, who: str = "") -> None:
    """One handler on stderr for everything; UTC times. ``form`` is text or json; ``who`` is added to the
    names of loggers."""
    who = f" {who}" if who else ""
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(_JsonFormatter(who))
    else:
        line = f"%(asctime)s %(levelname)s %(name)s{who}: %(message)s"
        formatter = logging.Formatter(line, "%Y-%m-%dT%H:%M:%SZ")
        formatter.converter = time.gmtime
        handler.setFormatter(formatter)
    # What aiohttp itself reports is garbage on the port: every fault of a handler is logged by the server.
    if level != "debug":
        logging.getLogger("mmx.http").setLevel(logging.CRITICAL)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
