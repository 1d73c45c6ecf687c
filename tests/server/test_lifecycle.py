"""Loading, cancelling, draining and dying, in one process with a scripted engine."""

from __future__ import annotations

import asyncio
import json
import logging

import aiohttp
import msgspec
import pytest

from mmx.server import sse
from mmx.server.generation import canary
from mmx.server.lifecycle import SUPERVISOR
from server.helpers import ScriptedEngine, Server, check_error, serving, stats

CHAT = "/v1/chat/completions"
STREAM = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
LONG = "word " * 3000


def slow(step_seconds: float = 0.005, **limits: int) -> ScriptedEngine:
    return ScriptedEngine(LONG, step_seconds=step_seconds, **limits)


async def begun(server: Server, **fields: object) -> aiohttp.ClientResponse:
    """A stream whose first event has arrived."""
    response = await server.http.post(CHAT, json={**STREAM, **fields})
    assert response.status == 200
    assert (await response.content.readline()).startswith(b"data: ")
    return response


async def test_loading_answers_503_with_progress(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mmx.server")
    async with serving(wait=False) as server:
        await asyncio.sleep(0.3)
        status, body = await server.get("/health")
        assert (status, body["status"], body["phase"], body["progress"]) == (503, "loading", "weights", 0.25)
        assert body["eta_s"] >= 0
        for path in ("/ready", "/ping"):
            assert (await server.get(path))[0] == 503
        assert (await server.get("/live"))[0] == 200
        assert (await server.get("/version"))[0] == 200
        check_error(*await server.chat(), (503, "loading", None))
        check_error(*await server.get("/v1/models"), (503, "loading", None))
        async with server.http.get("/metrics") as response:
            assert response.status == 200
        server.engine.may_be_ready.set()
        while (await server.get("/health"))[0] != 200:
            await asyncio.sleep(0.01)
        assert (await server.chat())[0] == 200
        assert "loading: weights 25 %" in caplog.text
        assert "service start" in caplog.text
        assert "Application startup complete." in caplog.text


async def test_client_that_leaves_a_stream_frees_its_request() -> None:
    async with serving(slow()) as server:
        response = await begun(server, n=2)
        assert server.engine.num_open == 2
        response.close()
        await server.idle()
        assert len(server.engine.aborted) == 2
        assert (await server.chat(max_tokens=1))[0] == 200


async def test_client_that_leaves_before_the_answer_frees_its_request() -> None:
    async with serving(slow()) as server:
        task = asyncio.ensure_future(server.chat())
        while server.engine.num_open == 0:
            await asyncio.sleep(0.005)
        task.cancel()
        await server.idle()
        assert len(server.engine.aborted) == 1


async def test_many_clients_cut_at_random_points_leave_nothing() -> None:
    engine = slow(0.001, max_num_seqs=64, max_num_queued_reqs=256)
    async with serving(engine) as server:

        async def cut(index: int) -> None:
            async with aiohttp.ClientSession(base_url=server.url) as session:
                body = {**STREAM, "stream": index % 3 != 0}
                task = asyncio.ensure_future(session.post(CHAT, json=body))
                await asyncio.sleep(0.002 * (index % 50))
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        await asyncio.gather(*(cut(index) for index in range(100)))
        await server.idle()
        # The tasks of closed connections need a turn of the loop or two to end.
        for _ in range(500):
            if len(asyncio.all_tasks()) < 10:
                break
            await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) < 10


async def test_abort_before_the_prompt_was_read_answers_without_its_logprobs() -> None:
    async with serving(ScriptedEngine(step_seconds=30)) as server:
        for path, body in (
            ("/v1/completions", {"prompt": "a b c", "prompt_logprobs": 1}),
            ("/v1/completions", {"prompt": "a b c", "echo": True, "logprobs": 1}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "prompt_logprobs": 1}),
        ):
            waiting = asyncio.create_task(server.post(path, {**body, "request_id": "mine"}))
            while "mine" not in server.state.live:
                await asyncio.sleep(0.005)
            assert (await server.post("/abort_request", {"rid": "mine"}))[1] == {"aborted": ["mine"]}
            status, answer = await waiting
            assert (status, answer["choices"][0]["finish_reason"]) == (200, "abort")


async def test_abort_endpoints_end_streams_politely() -> None:
    async with serving(slow()) as server:
        response = await begun(server, request_id="mine")
        async with server.http.delete("/v1/requests/mine") as answer:
            assert await answer.json() == {"id": "mine", "aborted": True}
        events = [line for line in (await response.text()).split("\n") if line]
        assert json.loads(events[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "abort"
        async with server.http.delete("/v1/requests/mine") as answer:
            check_error(answer.status, await answer.json(), (404, "not_found", None))
        first, second = await begun(server, request_id="a"), await begun(server, request_id="b")
        assert (await server.post("/abort_request", {"rid": "a"}))[1] == {"aborted": ["a"]}
        assert (await server.post("/abort_request", {"abort_all": True}))[1]["aborted"] == ["b"]
        assert b"abort" in await first.read()
        assert b"abort" in await second.read()


async def test_silence_is_filled_with_empty_lines() -> None:
    async with serving(ScriptedEngine("a", step_seconds=0.5), "--sse-keep-alive-interval", "0.1") as server:
        async with server.http.post(CHAT, json=STREAM) as response:
            assert await response.content.readline() == b"\n"
            text = await response.text()
        assert text.lstrip("\n").startswith("data: {")
        chunks = [c async for c in await server.openai.chat.completions.create(model="mmx-demo", **STREAM)]
        assert chunks[0].choices[0].delta.content == "a"
    flags = ("--sse-keep-alive-interval", "0.1", "--sse-keep-alive-style", "comment")
    async with (
        serving(ScriptedEngine("a", step_seconds=0.5), *flags) as server,
        server.http.post(CHAT, json=STREAM) as response,
    ):
        assert await response.content.readline() == b": keep-alive\n"


async def test_reader_that_stalls_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "STALL_SECONDS", 0.3)
    engine = ScriptedEngine("word " * 3900)
    async with serving(engine, "--sse-keep-alive-interval", "0.1") as server:
        host, port = server.url.removeprefix("http://").split(":")
        body = json.dumps({**STREAM, "n": 16}).encode()
        reader, writer = await asyncio.open_connection(host, int(port), limit=1)
        writer.transport.pause_reading()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        while not server.state.live:
            await asyncio.sleep(0.01)
        await server.idle()
        writer.close()
        assert (await server.chat(max_tokens=1))[0] == 200
        del reader


async def test_death_of_the_engine() -> None:
    async with serving(slow(), "--shutdown-timeout", "0.2") as server:
        stream = await begun(server)
        whole = asyncio.ensure_future(server.chat())
        while server.engine.num_open < 2:
            await asyncio.sleep(0.005)
        server.engine.die()
        check_error(*await whole, (503, "engine_dead", None))
        events = [line for line in (await stream.text()).split("\n") if line]
        assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "engine_dead"
        assert events[-1] == "data: [DONE]"
        status, body = await server.get("/health")
        assert (status, body["status"]) == (503, "dead")
        check_error(*await server.chat(), (503, "engine_dead", None))
        assert await asyncio.wait_for(server.app[SUPERVISOR].finished, 2) == 1


async def test_drain_lets_streams_finish() -> None:
    async with serving(ScriptedEngine("word " * 60, step_seconds=0.01)) as server:
        stream = await begun(server)
        supervisor = server.app[SUPERVISOR]
        supervisor.stop()
        status, body = await server.get("/health")
        assert (status, body["status"]) == (503, "draining")
        check_error(*await server.chat(), (503, "draining", None))
        assert not supervisor.finished.done()
        assert (await stream.text()).rstrip().endswith("data: [DONE]")
        assert await asyncio.wait_for(supervisor.finished, 2) == 0


async def test_drain_ends_at_its_limit_and_at_the_second_signal() -> None:
    for flags, signals in ((("--shutdown-timeout", "0.2"), 1), (("--shutdown-timeout", "60"), 2)):
        async with serving(slow(), *flags) as server:
            stream = await begun(server)
            supervisor = server.app[SUPERVISOR]
            for _ in range(signals):
                supervisor.stop()
            assert await asyncio.wait_for(supervisor.finished, 2) == 0
            await server.engine.shutdown()
            assert '"code":"draining"' in await stream.text()


async def test_failed_start_ends_with_the_code_of_the_fault() -> None:
    class RefusedError(RuntimeError):
        exit_code = 4

    class Engine(ScriptedEngine):
        async def wait_ready(self) -> None:  # type: ignore[override]
            raise RefusedError("tensor model.embed: expected [2, 3]")

    async with serving(Engine(), wait=False) as server:
        assert await asyncio.wait_for(server.app[SUPERVISOR].finished, 5) == 4
        assert (await server.get("/health"))[0] == 503


async def test_canaries_fly_side_by_side_and_leave_nothing() -> None:
    """Two balancers that ask at once, and one that gives up, must not disturb each other."""
    async with serving() as server:
        engine, front = server.engine, server.state.front
        assert front is not None
        await asyncio.gather(canary(engine, front), canary(engine, front))
        given_up = asyncio.create_task(canary(engine, front))
        await asyncio.sleep(0)
        assert engine.num_open == 1
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        assert engine.num_open == 0


async def test_load_counts_the_pages_of_all_groups() -> None:
    async with serving() as server:
        pages = {"num_blocks": 3 * 64, "num_free_blocks": 3 * 64}
        server.engine.stats = msgspec.structs.replace(stats(), **pages)
        _, body = await server.get("/load")
        assert body["kv_free_tokens"] == body["kv_total_tokens"] == 3 * 64 * 64


async def test_health_generate_and_load() -> None:
    async with serving(slow()) as server:
        assert (await server.get("/health_generate"))[0] == 200
        stream = await begun(server)
        _, body = await server.get("/load")
        assert (body["server_load"], body["running"]) == (1, 1)
        stream.close()
        _, info = await server.get("/server_info")
        assert info["engine"]["max_model_len"] == 4096
        assert info["settings"]["port"] == {"value": 8000, "origin": "default"}
        assert (await server.post("/reset_prefix_cache", {}))[0] == 200
