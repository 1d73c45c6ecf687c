"""Control keys, other origins, encryption."""

from __future__ import annotations

import shutil
import signal
import ssl
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from mmx.server.flag_kinds import FlagError
from mmx.server.settings import load_config
from mmx.server.tls import Certificate
from server.helpers import ScriptedEngine, serving
from server.process import server


def key(value: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {value}"}


async def test_control_endpoints_need_the_admin_key() -> None:
    flags = ("--api-key", "user", "--admin-api-key", "root")
    async with serving(ScriptedEngine(), *flags) as running:
        session = running.http

        async def status(method: str, path: str, headers: dict[str, str]) -> int:
            async with session.request(method, path, headers=headers) as response:
                return response.status

        for method, path in (("GET", "/server_info"), ("POST", "/reset_prefix_cache")):
            assert await status(method, path, {}) == 401
            assert await status(method, path, key("user")) == 403
            assert await status(method, path, key("root")) == 200
        assert await status("GET", "/v1/models", key("root")) == 200
        assert await status("GET", "/v1/models", key("user")) == 200
        assert await status("GET", "/v1/models", key("other")) == 401


async def test_an_admin_key_alone_leaves_the_rest_open() -> None:
    async with serving(ScriptedEngine(), "--admin-api-key", "root") as running:
        session = running.http
        async with session.get("/v1/models") as response:
            assert response.status == 200
        async with session.get("/server_info") as response:
            assert response.status == 401
        async with session.get("/server_info", headers={"x-api-key": "root"}) as response:
            assert response.status == 200
            assert "root" not in await response.text()


async def test_other_origins_get_headers_only_if_allowed() -> None:
    flags = ("--allowed-origins", '["https://a.example"]', "--allow-credentials", "--allowed-methods", "POST")
    async with serving(ScriptedEngine(), *flags) as running:
        session = running.http
        async with session.get("/v1/models", headers={"Origin": "https://a.example"}) as response:
            assert response.headers["Access-Control-Allow-Origin"] == "https://a.example"
            assert response.headers["Access-Control-Allow-Credentials"] == "true"
            assert response.headers["Vary"] == "Origin"
        async with session.get("/v1/models", headers={"Origin": "https://b.example"}) as response:
            assert "Access-Control-Allow-Origin" not in response.headers
        asked = {
            "Origin": "https://a.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        async with session.options("/v1/chat/completions", headers=asked) as response:
            assert response.status == 204
            assert response.headers["Access-Control-Allow-Methods"] == "POST"
            assert response.headers["Access-Control-Allow-Headers"] == "authorization"
            assert response.headers["Access-Control-Allow-Origin"] == "https://a.example"


async def test_errors_and_streams_are_marked_for_all_origins_too() -> None:
    async with serving(ScriptedEngine(), "--allowed-origins", "*", "--api-key", "k") as running:
        session = running.http
        async with session.get("/v1/models", headers={"Origin": "https://x.example"}) as response:
            assert response.status == 401
            assert response.headers["Access-Control-Allow-Origin"] == "*"
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
        headers = {"Origin": "https://x.example", **key("k")}
        async with session.post("/v1/chat/completions", json=body, headers=headers) as response:
            assert response.headers["Access-Control-Allow-Origin"] == "*"


async def test_without_allowed_origins_options_is_no_method() -> None:
    async with serving(ScriptedEngine()) as running:
        session = running.http
        async with session.options("/v1/models", headers={"Origin": "https://a.example"}) as response:
            assert response.status == 405
            assert "Access-Control-Allow-Origin" not in response.headers


def certificate_files(folder: Path, name: str) -> tuple[Path, Path]:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl on this machine")
    cert, private = folder / f"{name}.pem", folder / f"{name}.key"
    subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run(
        [*command, "-keyout", str(private), "-out", str(cert)], check=True, capture_output=True, timeout=60
    )
    return cert, private


def test_https(tmp_path: Path) -> None:
    cert, private = certificate_files(tmp_path, "one")
    flags = ("--ssl-certfile", str(cert), "--ssl-keyfile", str(private))
    with server("null?vocab_size=4096", *flags) as process:
        context = ssl.create_default_context(cafile=str(cert))
        assert process.url.startswith("https://")
        status, _ = process.get("/live", context=context)
        assert status == 200


def test_a_changed_certificate_is_read_again_and_a_bad_one_is_not(tmp_path: Path) -> None:
    cert, private = certificate_files(tmp_path, "one")
    config = load_config(["--ssl-certfile", str(cert), "--ssl-keyfile", str(private)], {})
    certificate = Certificate(config.access)
    assert certificate.context is not None
    assert not certificate.refresh_once()
    other_cert, other_private = certificate_files(tmp_path, "two")
    private.write_bytes(other_private.read_bytes())
    assert not certificate.refresh_once()
    cert.write_bytes(other_cert.read_bytes())
    assert certificate.refresh_once()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--ssl-keyfile", "k.pem"], "need --ssl-certfile"),
        (["--ssl-certfile", "/no/such.pem"], "can not be used"),
    ],
)
def test_certificates_that_can_not_be_used_are_refused(flags: list[str], text: str) -> None:
    with pytest.raises(FlagError, match=text):
        Certificate(load_config(flags, {}).access)


def test_origins_are_words_or_one_json_list() -> None:
    assert load_config(["--allowed-origins", "a", "b"], {}).access.allowed_origins == ("a", "b")
    assert load_config(["--allowed-origins", '["a"]'], {}).access.allowed_origins == ("a",)
    with pytest.raises(FlagError, match="expected words or one JSON list"):
        load_config(["--allowed-origins", "[1]"], {})


def test_sighup_reads_the_key_file_again(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("old\n")
    with server("null?vocab_size=4096", "--api-key-file", str(file)) as process:
        process.ready()

        def status(key: str) -> int:
            request = urllib.request.Request(f"{process.url}/v1/models", headers={"x-api-key": key})
            try:
                with urllib.request.urlopen(request, timeout=10) as response:
                    return int(response.status)
            except urllib.error.HTTPError as error:
                return error.code

        assert (status("old"), status("new")) == (200, 401)
        file.write_text("new\n")
        process.child.send_signal(signal.SIGHUP)
        process.wait_for("API keys read again")
        assert (status("old"), status("new")) == (401, 200)
        file.write_text("")
        process.child.send_signal(signal.SIGHUP)
        process.wait_for("holds no key")
        assert status("new") == 200
