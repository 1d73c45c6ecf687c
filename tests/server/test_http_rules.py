"""The rules of HTTP: bodies, sizes, types, keys, methods, ids, queue and faults."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mmx.server import body as body_module
from server.helpers import MODEL, TOKENIZER, Server, check_error, serving

USER = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
COUNTED = {"model": MODEL, "messages": USER}


async def raw(server: Server, data: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    headers = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
    async with server.http.post(CHAT, data=data, headers=headers) as response:
        return response.status, await response.json()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b'{"messages": NaN}',
        b'{"temperature": 1e999}',
        b'{"messages": "\xff"}',
        b'{"messages": "\\ud800"}',
        b"\xef\xbb\xbf{}",
        b'{"a": ' + b"[" * 101 + b"]" * 101 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=range(13),
)
async def test_not_json(data: bytes) -> None:
    async with serving() as server:
        check_error(*await raw(server, data), (400, "invalid_json", None))


async def test_an_empty_body_is_called_so() -> None:
    async with serving() as server:
        _, answer = await raw(server, b" \n")
        assert answer["error"]["message"] == "the request body is empty"


async def test_nesting_up_to_the_limit_is_fine() -> None:
    async with serving() as server:
        inner = "[" * 95 + "]" * 95
        data = f'{{"messages": {json.dumps(USER)}, "metadata": {{"x": {inner}}}}}'.encode()
        assert (await raw(server, data))[0] == 200


async def test_content_types() -> None:
    async with serving() as server:
        data = json.dumps({"messages": USER}).encode()
        for kind in (
            "application/json",
            "Application/JSON; charset=UTF-8",
            'application/json; charset="utf-8"',
        ):
            assert (await raw(server, data, Content_Type=kind))[0] == 200
        for kind in ("text/plain", "application/json; charset=latin-1", "multipart/form-data"):
            check_error(*await raw(server, data, Content_Type=kind), (415, "unsupported_media_type", None))
        async with server.http.post(CHAT, data=data, skip_auto_headers=["Content-Type"]) as response:
            assert response.status == 200


async def test_gzip_is_expanded_under_the_limit() -> None:
    async with serving(None, "--max-body-bytes", "100k") as server:
        data = gzip.compress(json.dumps({"messages": USER}).encode())
        assert (await raw(server, data, Content_Encoding="gzip"))[0] == 200
        bomb = gzip.compress(b" " * 50_000_000)
        assert len(bomb) < 100_000
        check_error(*await raw(server, bomb, Content_Encoding="gzip"), (413, "request_too_large", None))
        status, _ = await raw(server, b"no gzip at all", Content_Encoding="gzip")
        assert status == 400
        for encoding in ("x-gzip", "gzip, gzip", "rot13"):
            answer = await raw(server, data, Content_Encoding=encoding)
            check_error(*answer, (415, "unsupported_media_type", None))
        assert (await server.chat())[0] == 200


async def test_too_large_is_answered_before_the_body_is_read() -> None:
    async with serving(None, "--max-body-bytes", "1000") as server:
        reader, writer = await _connect(server)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000000000\r\n\r\n{"
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 413 " in head.split(b"\r\n")[0]
        writer.close()
        check_error(*await raw(server, b" " * 2000), (413, "request_too_large", None))


async def test_expect_continue_is_answered_from_the_headers() -> None:
    async with serving(None, "--max-body-bytes", "1000", "--api-key", "k") as server:
        body = json.dumps({"messages": USER}).encode()
        for extra, expected in (
            (b"Authorization: Bearer k\r\nContent-Length: 5000\r\n", b"413"),
            (b"Content-Length: 50\r\n", b"401"),
            (b"Authorization: Bearer k\r\nContent-Length: %d\r\n" % len(body), b"100"),
        ):
            reader, writer = await _connect(server)
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Expect: 100-continue\r\n" + extra + b"\r\n"
            )
            assert (await reader.readline()).split()[1] == expected
            if expected == b"100":
                await reader.readline()
                writer.write(body)
                assert (await reader.readline()).split()[1] == b"200"
            writer.close()


async def test_expectations_that_are_refused_have_an_id_of_their_own() -> None:
    async with serving() as server:
        for expected in (200, 417):
            headers = {"X-Request-Id": f"mine-{expected}"} | ({"Expect": "tea"} if expected == 417 else {})
            async with server.http.post("/v1/messages/count_tokens", json=COUNTED, headers=headers) as answer:
                assert answer.status == expected
                assert answer.headers["X-Request-Id"] == f"mine-{expected}"
                body = await answer.json()
        assert (body["request_id"], body["error"]["type"]) == ("mine-417", "invalid_request_error")


async def _connect(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = server.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def test_keys() -> None:
    async with serving(None, "--api-key", "alpha", "beta") as server:
        body = {"messages": USER}
        for headers in (
            {},
            {"Authorization": "Bearer gamma"},
            {"Authorization": "alpha"},
            {"x-api-key": "é"},
        ):
            async with server.http.post(CHAT, json=body, headers=headers) as response:
                check_error(response.status, await response.json(), (401, "invalid_api_key", None))
                assert response.headers["WWW-Authenticate"] == "Bearer"
        for headers in ({"Authorization": "bearer alpha"}, {"X-API-Key": "beta"}):
            async with server.http.post(CHAT, json=body, headers=headers) as response:
                assert response.status == 200
        for path in ("/health", "/metrics", "/version", "/load", "/openapi.json", "/live"):
            async with server.http.get(path) as response:
                assert response.status == 200, path
        assert (await server.get("/v1/models"))[0] == 401


async def test_key_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("old\n\n")
    async with serving(None, "--api-key-file", str(file)) as server:
        assert (await server.post(CHAT, {"messages": USER}, **{"x-api-key": "old"}))[0] == 200
        file.write_text("new\n")
        server.state.keys.reload()
        assert (await server.post(CHAT, {"messages": USER}, **{"x-api-key": "old"}))[0] == 401
        assert (await server.post(CHAT, {"messages": USER}, **{"x-api-key": "new"}))[0] == 200


async def test_methods() -> None:
    async with serving() as server:
        async with server.http.get(CHAT) as response:
            check_error(response.status, await response.json(), (405, "method_not_allowed", None))
            assert response.headers["Allow"] == "POST"
        async with server.http.head("/health") as response:
            assert response.status == 200
        async with server.http.post(CHAT + "/", json={"messages": USER}) as response:
            assert response.status == 200


async def test_tokenize_and_back() -> None:
    async with serving() as server:
        status, body = await server.post("/tokenize", {"prompt": "Hello, wörld", "return_token_strs": True})
        assert (status, body["tokens"]) == (200, TOKENIZER.encode("Hello, wörld"))
        assert body["count"] == len(body["token_strs"])
        assert body["max_model_len"] == 4096
        status, text = await server.post("/v1/detokenize", {"tokens": body["tokens"]})
        assert text == {"prompt": "Hello, wörld"}
        await server.chat()
        _, chat = await server.post("/tokenize", {"messages": USER, "model": MODEL})
        assert chat["tokens"] == server.engine.submitted[0].prompt_token_ids


async def test_raw_garbage_on_the_port() -> None:
    async with serving() as server:
        for data in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01",
            b"GET\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        ):
            reader, writer = await _connect(server)
            writer.write(data)
            writer.write_eof()
            answer = await reader.read()
            assert b"Traceback" not in answer
            writer.close()
        async with aiohttp.ClientSession() as session, session.get(f"{server.url}/health") as response:
            assert response.status == 200


@pytest.mark.parametrize("asked", [b"", b"Connection: keep-alive\r\n"])
async def test_streams_over_http_1_0_end_with_the_connection(asked: bytes) -> None:
    async with serving() as server:
        body = json.dumps({"messages": USER, "stream": True}).encode()
        reader, writer = await _connect(server)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\n"
            b"%bContent-Length: %d\r\n\r\n%b" % (asked, len(body), body)
        )
        answer = await asyncio.wait_for(reader.read(), 5)
        head, _, events = answer.partition(b"\r\n\r\n")
        assert b" 200 " in head.split(b"\r\n")[0]
        assert b"chunked" not in head
        assert events.startswith(b"data: {")
        assert events.endswith(b"data: [DONE]\n\n")
        writer.close()


async def test_large_bodies_are_served() -> None:
    async with serving() as server:
        padding = "x" * (2 << 20)
        assert (await server.chat(metadata={"padding": padding}))[0] == 200


async def test_half_sent_body_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "BODY_IDLE_TIMEOUT", 0.1)
    async with serving() as server:
        reader, writer = await _connect(server)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b'Content-Length: 100\r\n\r\n{"mess'
        )
        assert (await reader.readline()).split()[1] == b"408"
        writer.close()
