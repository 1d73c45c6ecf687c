"""What all request handlers share: configuration, model front end, engine and their present state."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

import msgspec
from aiohttp import web

import mmx
from mmx.protocol import (
    EngineDead,
    EngineStats,
    Failed,
    Loading,
    Profile,
    Profiled,
    Ready,
    StepOutput,
    Submit,
    TokenOut,
)
from mmx.server.access import Keys, Signer
from mmx.server.cross_origin import CrossOrigin
from mmx.server.errors import ApiError, clip
from mmx.server.metric_set import Metrics
from mmx.server.model_front import ModelFront
from mmx.server.responses_store import ResponseStore
from mmx.server.settings import ServerConfig

RETRY_MIN_SECONDS = 1
RETRY_MAX_SECONDS = 60


class Stream(Protocol):
    """What the engine says about one sequence; see ``mmx.engine.client.RequestStream``."""

    async def take(self) -> list[TokenOut | Failed]: ...


class Engine(Protocol):
    """The part of ``mmx.engine.client.EngineClient`` that the server uses."""

    ready: Ready | None
    loading: Loading | None
    stats: EngineStats | None
    dead: EngineDead | None
    on_step: Callable[[StepOutput], None] | None
    on_dead: Callable[[EngineDead], None] | None

    @property
    def num_open(self) -> int: ...
    async def wait_ready(self) -> Ready: ...
    def submit(self, message: Submit) -> Stream: ...
    def abort(self, request_ids: Iterable[str]) -> None: ...
    def reset_prefix_cache(self) -> None: ...
    async def profile(self, message: Profile) -> Profiled: ...
    async def shutdown(self, drain_timeout: float = 0.0) -> int: ...


class ServerState:
    """One server: ``phase`` is loading, ready, draining or dead. ``live`` maps the id of each request
    in work to the ids of its sequences in the engine."""

    def __init__(self, config: ServerConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.created = int(time.time())
        self.keys = Keys(config.http.api_keys, config.http.api_key_file, config.access.admin_api_keys)
        self.cross_origin = CrossOrigin(config.access)
        self.responses = ResponseStore(config.http.response_store_size)
        self.signer = Signer(config.http.signature_key)
        self.served_names = config.model.served_names or (_default_name(config, folder),)
        self.metrics = Metrics(self.served_names[0], config.http.metrics_alias)
        self.pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="mmx-render")
        self.live: dict[str, list[str]] = {}
        self.phase = "loading"
        self.phase_started = time.monotonic()
        self.engine: Engine | None = None
        self.front: ModelFront | None = None
        shape = msgspec.json.encode(config.engine) + str(folder).encode()
        self.fingerprint = f"mmx-{mmx.__version__}-{hashlib.sha256(shape).hexdigest()[:8]}"
        names = [*self.served_names, config.engine.model, str(folder)]
        self._known = {name.rstrip("/").rsplit("/", 1)[-1].lower() for name in names if name}

    def serving(self) -> tuple[Engine, Ready, ModelFront]:
        """Engine, its limits and the model's front end; 503 unless all of them are there to work."""
        engine, front = self.engine, self.front
        if self.phase != "ready" or engine is None or engine.ready is None or front is None:
            raise self._unavailable()
        return engine, engine.ready, front

    def _unavailable(self) -> ApiError:
        texts = {
            "loading": ("loading", "the model is still being loaded; see /health"),
            "draining": ("draining", "the server is shutting down and takes no new requests"),
        }
        code, text = texts.get(self.phase, ("engine_dead", "the engine has ended; the server can not answer"))
        return ApiError(code, text, retry_after=5 if code == "loading" else None)

    def answered_name(self, asked: str | None) -> str:
        """The name under which the model answers: the one asked for, if it is ours (404 otherwise)."""
        if asked is None:
            return self.served_names[0]
        if asked in self.served_names or asked.rstrip("/").rsplit("/", 1)[-1].lower() in self._known:
            return asked
        raise ApiError(
            "model_not_found",
            f"the model {clip(asked)!r} does not exist; this server has {', '.join(self.served_names)}",
            "model",
        )

    def admit(self, num_sequences: int) -> None:
        """Raise 429 when the engine's queue has no room for this many more sequences, 400 if it never has."""
        engine, ready, _ = self.serving()
        capacity = ready.max_num_seqs + ready.max_num_queued_reqs
        if num_sequences > capacity:
            raise ApiError(
                "invalid_value",
                f"the request asks for {num_sequences} sequences, this server takes {capacity} at once",
                "n",
            )
        if num_sequences > capacity - engine.num_open:
            self.metrics.rejections.value("queue_full").add()
            raise ApiError(
                "queue_full",
                f"the queue is full ({engine.num_open} sequences are open); try again later",
                status=self.config.http.overload_status,
                retry_after=self.retry_after(),
            )

    def retry_after(self) -> int:
        """Seconds until there should be room: the open sequences at their measured mean duration."""
        engine, ready, _ = self.serving()
        series = self.metrics.e2e
        finished = sum(series.counts)
        mean = series.total / finished if finished else 1.0
        waves = max(engine.num_open - ready.max_num_seqs, 1) / ready.max_num_seqs
        return int(min(max(mean * waves, RETRY_MIN_SECONDS), RETRY_MAX_SECONDS))

    def health(self) -> dict[str, Any]:
        """The body of /health."""
        body: dict[str, Any] = {"status": self.phase, "ranks": []}
        loading = self.engine.loading if self.engine is not None else None
        if self.phase == "loading":
            progress = loading.progress if loading else 0.0
            elapsed = time.monotonic() - self.phase_started
            body["phase"] = loading.phase if loading else "start"
            body["progress"] = round(progress, 3)
            body["eta_s"] = round(elapsed * (1 - progress) / progress, 1) if progress > 0 else None
        elif self.engine is not None and self.engine.ready is not None:
            # Why alike: one rank that is lost ends all of them.
            facts = {"device": self.engine.ready.device, "alive": self.phase != "dead"}
            body["ranks"] = [{"rank": rank} | facts for rank in range(self.config.parallel.world_size)]
        return body


def _default_name(config: ServerConfig, folder: Path) -> str:
    """The hub id that a folder of the hub cache spells, else its last part; the demo has its own name."""
    if not config.engine.model:
        return "mmx-demo"
    resolved = folder.resolve()
    for part in resolved.parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/", 1)
    return resolved.name


STATE = web.AppKey("state", ServerState)
# The id of the request that the current task answers.
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
