"""What happens to a request between its arrival and the engine: ids, queue, deadlines, faults, log."""

from __future__ import annotations

import asyncio
import json

import pytest

from mmx.protocol import Failed
from server.helpers import ScriptedEngine, check_error, serving

USER = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"


async def test_unknown_fields() -> None:
    for mode, status, warnings in (("warn", 200, 1), ("ignore", 200, 0), ("error", 400, None)):
        async with serving(None, "--unknown-fields", mode) as server:
            got, body = await server.chat(frobnicate=1)
            assert got == status
            if status == 200:
                assert len(body["mmx"]["warnings"]) == warnings
            else:
                check_error(got, body, (400, "unknown_parameter", "frobnicate"))


async def test_off_values_of_refused_fields_are_accepted() -> None:
    async with serving() as server:
        status, _ = await server.chat(
            echo=False, guided_json=None, separate_reasoning=True, priority=0, n=1.0
        )
        assert status == 200


async def test_engine_refusals_keep_their_status() -> None:
    def script(message):
        return Failed(request_id=message.request_id, message="too late", code="deadline_exceeded", status=504)

    async with serving(ScriptedEngine(script)) as server:
        check_error(*await server.chat(), (504, "deadline_exceeded", None))
        async with server.http.post(CHAT, json={"messages": USER, "stream": True}) as response:
            assert response.status == 200
            text = await response.text()
        error, done = [line for line in text.split("\n\n") if line]
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
        assert done == "data: [DONE]"


async def test_bug_becomes_500_without_details(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server:
        server.state.front.template._compiled = None
        async with server.http.post(
            CHAT, json={"messages": USER}, headers={"X-Request-Id": "abc"}
        ) as response:
            body = await response.json()
            check_error(response.status, body, (500, "server_error", None))
            assert body["error"]["message"] == "internal error in request abc"
        assert "NoneType" in caplog.text
        caplog.clear()


async def test_queue_full() -> None:
    engine = ScriptedEngine("x " * 500, step_seconds=0.01, max_num_seqs=1, max_num_queued_reqs=2)
    async with serving(engine) as server:
        tasks = [asyncio.ensure_future(server.chat(max_tokens=100)) for _ in range(3)]
        while engine.num_open < 3:
            await asyncio.sleep(0.005)
        async with server.http.post(CHAT, json={"messages": USER, "stream": True}) as response:
            check_error(response.status, await response.json(), (429, "queue_full", None))
            assert 1 <= int(response.headers["Retry-After"]) <= 60
        assert (await server.get("/ready"))[0] == 503
        assert (await server.get("/health"))[0] == 200
        assert [status for status, _ in await asyncio.gather(*tasks)] == [200] * 3
        assert (await server.chat(max_tokens=1))[0] == 200


async def test_duplicate_request_id() -> None:
    async with serving(ScriptedEngine("x " * 500, step_seconds=0.01)) as server:
        first = asyncio.ensure_future(server.chat(request_id="same", max_tokens=50))
        while not server.engine.submitted:
            await asyncio.sleep(0.005)
        check_error(*await server.chat(request_id="same"), (409, "duplicate_request_id", "request_id"))
        assert (await first)[0] == 200
        assert (await server.chat(request_id="same", max_tokens=1))[0] == 200


async def test_request_id_is_echoed() -> None:
    async with serving() as server:
        for given, ok in (("abc-1", True), ("x" * 128, True), ("x" * 129, False)):
            async with server.http.get("/health", headers={"X-Request-Id": given}) as response:
                assert (response.headers["X-Request-Id"] == given) is ok


async def test_one_line_a_request_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mmx.server")
    async with serving() as server:
        await server.chat(messages=[{"role": "user", "content": "secret words"}], request_id="r-1")
        (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("r-1:")]
        assert line.endswith(" stop")
        assert "secret" not in caplog.text
    caplog.clear()
    async with serving(None, "--disable-log-requests") as server:
        await server.chat(request_id="r-2")
        assert "r-2:" not in caplog.text


async def test_deadlines_reach_the_engine() -> None:
    async with serving(None, "--request-timeout", "9") as server:
        await server.chat()
        await server.chat(timeout=2.5)
        body = {"messages": USER}
        assert (await server.post(CHAT, body, **{"x-request-timeout": "7"}))[0] == 200
        assert [message.deadline_s for message in server.engine.submitted] == [9, 2.5, 7]
        answer = await server.post(CHAT, body, **{"x-request-timeout": "soon"})
        check_error(*answer, (400, "invalid_value", "x-request-timeout"))


async def test_more_sequences_than_the_server_ever_takes() -> None:
    async with serving(ScriptedEngine(max_num_seqs=2, max_num_queued_reqs=2)) as server:
        check_error(*await server.chat(n=5), (400, "invalid_value", "n"))
        assert (await server.chat(n=4))[0] == 200
