"""From the first second to the last: load, serve, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

import mmx
from mmx.protocol import EngineDead
from mmx.server.generation import canary
from mmx.server.model_front import ModelFront
from mmx.server.state import Engine, ServerState

log = logging.getLogger("mmx.server")

StartEngine = Callable[[], Awaitable[Engine]]

PROGRESS_POLL_SECONDS = 0.2
PROGRESS_LOG_SECONDS = 5.0


class Supervisor:
    """Owns the engine. ``finished`` gets the exit code of the process when there is a reason to end."""

    def __init__(self, state: ServerState, start_engine: StartEngine) -> None:
        self.state = state
        self._start_engine = start_engine
        self.finished: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        self._tasks.append(asyncio.create_task(self._load()))

    async def end(self) -> None:
        """Release everything; open requests fail. Harmless when repeated."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if tasks and self.state.engine is not None:
            await self.state.engine.shutdown()
        self.state.pool.shutdown(wait=False, cancel_futures=True)

    def stop(self) -> None:
        """Take no new work, let open requests finish up to the shutdown timeout, then end with 0; asked a
        second time, end at once."""
        if self.state.phase == "draining":
            self._finish(0)
            return
        was_dead = self.state.phase == "dead"
        self._phase("draining")
        self._tasks.append(asyncio.create_task(self._drain(1 if was_dead else 0)))

    async def _drain(self, exit_code: int) -> None:
        state = self.state
        deadline = time.monotonic() + state.config.http.shutdown_timeout
        log.info("draining: %d requests are open", len(state.live))
        while state.live and time.monotonic() < deadline and exit_code == 0:
            await asyncio.sleep(0.02)
        self._finish(exit_code)

    def _finish(self, exit_code: int) -> None:
        if not self.finished.done():
            self.finished.set_result(exit_code)

    def _phase(self, phase: str) -> None:
        self.state.phase = phase
        self.state.phase_started = time.monotonic()

    # ---- loading -------------------------------------------------------------------------------------

    async def _load(self) -> None:
        """Load tokenizer and engine side by side, try one generation, open the doors."""
        state = self.state
        started = time.monotonic()
        watch: asyncio.Task[None] | None = None
        try:
            loop = asyncio.get_running_loop()
            front = loop.run_in_executor(state.pool, ModelFront.load, state.config, state.folder)
            state.engine = await self._start_engine()
            state.engine.on_dead = self._engine_died
            state.engine.on_step = state.metrics.step
            watch = asyncio.create_task(self._report_progress(state.engine))
            state.front = await front
            ready = await state.engine.wait_ready()
            await canary(state.engine, state.front)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            code = getattr(error, "exit_code", None)
            if code is None:
                log.exception("the server could not start")
            else:
                log.error("%s", error)
            self._phase("dead")
            self._finish(code or 1)
            return
        finally:
            if watch is not None:
                watch.cancel()
        if state.phase != "loading":
            return
        seconds = time.monotonic() - started
        state.metrics.ready(ready, seconds, mmx.__version__)
        self._phase("ready")
        log.info(
            "%s on %s in %s: context %d (%s), %d pages of %d tokens, %d sequences, %d tokens per step",
            *(ready.model_family, ready.device, ready.dtype, ready.max_model_len, ready.max_model_len_reason),
            *(ready.num_blocks, ready.block_size, ready.max_num_seqs, ready.max_num_batched_tokens),
        )
        log.info("service start after %.1f s: %s", seconds, ", ".join(state.served_names))
        log.info("Application startup complete.")
        if state.config.log.stats_interval > 0:
            self._tasks.append(asyncio.create_task(self._report_load()))

    async def _report_progress(self, engine: Engine) -> None:
        """Log each phase of loading as it begins, and every few seconds how far it is."""
        phase, logged = None, 0.0
        while True:
            loading, now = engine.loading, time.monotonic()
            if loading is not None and (loading.phase != phase or now - logged >= PROGRESS_LOG_SECONDS):
                if loading.phase != phase:
                    self.state.phase_started = now
                phase, logged = loading.phase, now
                log.info("loading: %s %.0f %%", loading.phase, 100 * loading.progress)
            await asyncio.sleep(PROGRESS_POLL_SECONDS)

    async def _report_load(self) -> None:
        """While there is work, say how much."""
        state = self.state
        last = 0
        while True:
            await asyncio.sleep(state.config.log.stats_interval)
            stats = state.engine.stats if state.engine is not None else None
            if stats is None or (stats.generation_tokens == last and not state.live):
                continue
            rate = (stats.generation_tokens - last) / state.config.log.stats_interval
            last = stats.generation_tokens
            log.info(
                "running %d, waiting %d, %.1f tokens/s, pages %d of %d free",
                *(stats.num_running, stats.num_waiting, rate, stats.num_free_blocks, stats.num_blocks),
            )

    # ---- death ---------------------------------------------------------------------------------------

    def _engine_died(self, dead: EngineDead) -> None:
        """Health turns 503 at once; the process stays for the shutdown timeout so that load balancers see
        it, then ends with 1. While loading, ``_load`` reports instead."""
        if self.state.phase == "loading":
            return
        log.error("the engine ended: %s", dead.message)
        self._phase("dead")
        self._tasks.append(asyncio.create_task(self._leave_dead(dead.exit_code)))

    async def _leave_dead(self, exit_code: int) -> None:
        await asyncio.sleep(self.state.config.http.shutdown_timeout)
        self._finish(exit_code)


SUPERVISOR = web.AppKey("supervisor", Supervisor)
