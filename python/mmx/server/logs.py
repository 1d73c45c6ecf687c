"""Where log lines go and what they look like."""

from __future__ import annotations

import json
import logging
import sys
import time

from mmx.server.settings import LogSettings


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_logging(settings: LogSettings) -> None:
    """One handler on stderr for everything; UTC times."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.format == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        formatter = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        formatter.converter = time.gmtime
        handler.setFormatter(formatter)
    # What aiohttp itself reports is garbage on the port: every fault of a handler is logged by the server.
    if settings.level != "debug":
        logging.getLogger("mmx.http").setLevel(logging.CRITICAL)
    logging.basicConfig(level=settings.level.upper(), handlers=[handler], force=True)
