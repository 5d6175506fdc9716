"""The web interface as a real process with a real storage behind it, asked over real sockets."""

from __future__ import annotations

import http.client
import json
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest

from bus.catalogue import (
    Apply,
    GetStatus,
    ListLive,
    LiveSession,
    LiveSessions,
    ManagerStatus,
    Ping,
    Status,
)
from bus.model import new_id
from bus.records import ContainerFacts, SessionRecord
from bus.settings import WebuiSettings
from tests.unit.storage.instance import Instance, dead_process, instance, opening, wait_for
from webui.lan import is_private

HOSTILE = b"<script>alert(1)</script>\x1b[31m\xe2\x80\xae\xff\xfe&\"'\r\n"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass(frozen=True)
class Site:
    made: Instance
    port: int

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, names, answer.read())
        finally:
            connection.close()

    def raw(self, request: bytes) -> bytes:
        """Send bytes as they are and read until the end."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as sock:
            sock.sendall(request)
            answer = b""
            with suppress(ConnectionResetError):  # refused before all of it was read
                while chunk := sock.recv(65536):
                    answer += chunk
            return answer


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    port = free_port()
    with instance({GetStatus: status}, webui={"port": port, "host_names": ["pot.example"]}) as made:
        made.peer("session", {ListLive: live})
        made.start("storage", "recorder", "webui")
        made.session(HOSTILE)
        made.session(b"x" * 300_000)
        made.session(b"torn", end=False, relay=dead_process())
        wait_for(lambda: len([s for s in made.stored() if s.ended_at]) == 3, "three stored sessions")
        yield Site(made, port)


async def live(_: ListLive) -> LiveSessions:
    identity = opening().handoff.identity.model_copy(update={"service": "live<b>"})
    facts = ContainerFacts(id="c" * 24, template="t", image="i")
    return LiveSessions(sessions=(LiveSession(identity=identity, container=facts, relay_pid=1),))


async def status(_: GetStatus) -> Status:
    managers = (ManagerStatus(manager="storage", healthy=False, restarts=3, problem="<i>why</i>"),)
    return Status(sensor="test", configuration="digest", managers=managers)


def hostile(site: Site) -> SessionRecord:
    return next(s for s in site.made.stored() if s.bytes_in == len(HOSTILE))


def test_a_session_has_the_records_names(site: Site) -> None:
    record = hostile(site)
    answer = site.get(f"/api/v1/sessions/{record.id}")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.document == json.loads(record.model_dump_json())
    assert {"id", "sensor", "service", "protocol", "source", "destination", "started_at", "end_reason"} <= set(
        answer.document
    )
    assert answer.document["started_at"].endswith("Z")


def test_sessions_are_filtered_and_paged(site: Site) -> None:
    ids: list[str] = []
    path = "/api/v1/sessions?limit=2&source=198.51.100.0/24&service=ssh"
    page = site.get(path).document
    assert len(page["sessions"]) == 2
    ids += [session["id"] for session in page["sessions"]]
    page = site.get(f"{path}&cursor={page['next']}").document
    ids += [session["id"] for session in page["sessions"]]
    assert page["next"] is None
    assert ids == [session.id for session in site.made.stored()]
    assert site.get("/api/v1/sessions?source=203.0.113.0/24").document["sessions"] == []
    assert site.get("/api/v1/sessions?since=2999-01-01T00:00:00Z").document["sessions"] == []


def test_a_stream_is_downloaded_byte_for_byte_and_by_direction(site: Site) -> None:
    for record in site.made.stored():
        assert record.stream
        path = f"/api/v1/sessions/{record.id}/stream"
        whole = site.get(path)
        assert whole.body == site.made.blob(record.stream.sha256)
        assert whole.headers["content-type"] == "application/octet-stream"
        assert whole.headers["content-disposition"] == f'attachment; filename="{record.id}.stream"'
        assert whole.headers["content-length"] == str(len(whole.body))
        assert len(site.get(f"{path}?direction=in").body) == record.bytes_in
        assert len(site.get(f"{path}?direction=out").body) == record.bytes_out
        assert site.get(path, "HEAD").body == b""
    assert site.get(f"/api/v1/sessions/{hostile(site).id}/stream?direction=in").body == HOSTILE


def test_downloads_leak_no_descriptor(site: Site) -> None:
    path = f"/api/v1/sessions/{hostile(site).id}/stream"
    fds = Path(f"/proc/{site.made.processes['webui'].pid}/fd")
    for _ in range(5):
        site.get(path)

    def blobs() -> int:
        return sum("/blobs/" in str(fd.readlink()) for fd in list(fds.iterdir()) if fd.is_symlink())

    for _ in range(20):
        site.get(path)
        site.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        site.get(path, "HEAD")
    wait_for(lambda: blobs() == 0, "the blobs' descriptors to be closed")


@pytest.mark.parametrize("view", ["text", "hex"])
def test_hostile_bytes_are_escaped_on_the_page(site: Site, view: str) -> None:
    page = site.get(f"/sessions/{hostile(site).id}?view={view}")
    assert page.status == 200
    text = page.body.decode()
    assert "<script" not in text
    assert not any(ord(char) < 32 and char != "\n" for char in text)
    assert "\u202e" not in text
    shown = "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m\\u202e\\xff\\xfe&amp;&#34;&#39;\\r\\n"
    assert (shown if view == "text" else "3c 73 63 72 69 70 74 3e") in text


def test_the_overview_shows_managers_live_and_latest(site: Site) -> None:
    text = site.get("/").body.decode()
    assert "&lt;i&gt;why&lt;/i&gt;" in text
    assert "live&lt;b&gt;" in text
    assert "<b>" not in text
    assert all(session.id in text for session in site.made.stored())
    assert site.get("/api/v1/status").document["managers"][0]["restarts"] == 3


def test_the_listing_page_keeps_its_filters_and_escapes_them(site: Site) -> None:
    text = site.get("/sessions?limit=1&service=ssh").body.decode()
    assert "/sessions?cursor=" in text
    assert "limit=1" in text
    assert 'value="ssh"' in text
    text = site.get("/sessions?service=%22%3E%3Cscript%3E").body.decode()
    assert "<script" not in text


@pytest.mark.parametrize(
    "path",
    ["/", "/sessions", "/static/style.css", "/api/v1/status", "/api/v1/sessions", "/nowhere", "/api/v1/sessions/x"],
)
def test_every_answer_has_the_security_headers(site: Site, path: str) -> None:
    for answer in (site.get(path), site.get(path, Host="evil.example")):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers


def test_pages_use_no_script_and_nothing_from_elsewhere(site: Site) -> None:
    for path in ("/", "/sessions", f"/sessions/{hostile(site).id}", "/nowhere"):
        text = site.get(path).body.decode()
        assert "<script" not in text
        assert "style=" not in text
        assert "http://" not in text
        assert "https://" not in text


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "pot.example"}, 200),
        ({"Host": "localhost:1"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-origin"}, 200),
    ],
)
def test_hosts_and_origins(site: Site, headers: dict[str, str], expected: int) -> None:
    for path in ("/api/v1/sessions", "/sessions"):
        answer = site.get(path, **headers)
        assert answer.status == expected
        if expected != 200:
            assert answer.document["status"] == expected
            assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/sessions/" + "0" * 24, 404),
        ("/api/v1/sessions/" + "0" * 24 + "/stream", 404),
        ("/api/v1/sessions/" + "A" * 24, 404),
        ("/api/v1/sessions/..%2f..%2fetc%2fpasswd", 404),
        ("/api/v1/sessions/../../../etc/passwd", 404),
        ("/static/../app.py", 404),
        ("/static/..%2fapp.py", 404),
        ("/static//etc/passwd", 404),
        ("/api/v1/nowhere", 404),
        ("/api/v1/sessions?limit=0", 400),
        ("/api/v1/sessions?limit=1001", 400),
        ("/api/v1/sessions?limit=x", 400),
        ("/api/v1/sessions?limit=%D9%A1", 400),
        ("/api/v1/sessions?source=nowhere", 400),
        ("/api/v1/sessions?since=now", 400),
        ("/api/v1/sessions?cursor=zzz", 400),
        ("/api/v1/sessions?colour=blue", 400),
        ("/api/v1/sessions?service=" + "x" * 200, 400),
        ("/api/v1/sessions/" + "0" * 24 + "/stream?direction=up", 400),
    ],
)
def test_problems_are_named_without_a_traceback(site: Site, path: str, status: int) -> None:
    answer = site.get(path)
    assert answer.status == status
    assert b"Traceback" not in answer.body
    assert b"root:" not in answer.body
    if path.startswith("/api/v1/sessions") and "/../" not in path:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.document["status"] == status
        assert answer.document["title"]
        assert answer.document["detail"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_written(site: Site, method: str) -> None:
    answer = site.get("/api/v1/sessions", method)
    assert answer.status == 405
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /api/v1/sessions HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        b"GET http://evil.example/api/v1/sessions HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        b"GET /api/v1/sessions HTTP/1.0\r\n\r\n",
        b"GET /" + b"x" * 20000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /api/v1/sessions HTTP/1.1\r\nHost: local\xff\r\nConnection: close\r\n\r\n",
    ],
)
def test_odd_requests_are_refused_and_the_server_goes_on(site: Site, request_: bytes) -> None:
    answer = site.raw(request_)
    assert answer.split(b" ")[1].startswith(b"4")
    assert b"Traceback" not in answer
    assert b'"sessions"' not in answer
    assert site.get("/api/v1/sessions").status == 200


def test_only_loopback_and_private_addresses_are_listened_on(site: Site) -> None:
    """What is bound is exactly loopback and the host's private addresses, each by itself."""
    process = psutil.Process(site.made.processes["webui"].pid)
    bound = {c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    detail = site.made.ask("webui", Ping()).detail
    assert "127.0.0.1" in bound
    assert all(is_private(ip_address(ip)) and ip not in ("0.0.0.0", "::") for ip in bound)
    assert all(f"http://{ip}:" in detail or f"http://[{ip}]:" in detail for ip in bound)


def test_each_manager_that_is_down_is_named() -> None:
    port = free_port()
    with instance(webui={"port": port, "address": "127.0.0.1"}) as made:
        made.start("storage", "webui")
        site = Site(made, port)
        record = made.session(b"content")
        made.start("recorder")
        wait_for(lambda: [s for s in made.stored() if s.ended_at], "the session")
        made.stop("storage", signal.SIGKILL)
        for path in ("/api/v1/sessions", f"/api/v1/sessions/{record.path.name}"):
            answer = site.get(path)
            assert (answer.status, answer.document["title"]) == (503, "Service Unavailable")
            assert answer.document["detail"].startswith("storage: ")
        assert site.get("/api/v1/status").status == 503  # this controller does not know the command
        assert site.get("/api/v1/status").document["detail"].startswith("controller: ")
        overview = site.get("/")
        assert overview.status == 200
        assert b"storage is not running" in overview.body
        assert b"session is not running" in overview.body
        assert site.get("/sessions").status == 503
        made.start("storage")
        assert site.get("/api/v1/sessions").status == 200


def test_a_client_that_is_not_allowed_is_refused() -> None:
    """A client that webui.allow does not name is refused, whatever its headers claim."""
    port = free_port()
    with instance(webui={"port": port, "address": "127.0.0.1", "allow": ["10.0.0.0/8"]}) as made:
        made.start("webui")
        answer = Site(made, port).get("/api/v1/status", X_Forwarded_For="10.0.0.1", Forwarded="for=10.0.0.1")
        assert answer.status == 403
        assert "webui.allow" in answer.document["detail"]


def test_a_new_configuration_moves_the_listener_and_a_bad_one_changes_nothing() -> None:
    port, other = free_port(), free_port()
    with instance(webui={"port": port, "address": "127.0.0.1"}) as made:
        made.start("webui")
        busy = socket.create_server(("127.0.0.1", 0))
        with busy:
            bad = [
                WebuiSettings.model_validate({"port": port, "address": "203.0.113.9"}),
                WebuiSettings.model_validate({"port": busy.getsockname()[1], "address": "127.0.0.1"}),
            ]
            for settings in bad:
                for dry in (True, False):
                    config = made.config.model_copy(update={"webui": settings})
                    problem = made.ask("webui", Apply(config=config, configuration="x", dry=dry)).problem
                    assert problem
                    assert problem.startswith("webui.")
                    assert "\n" not in problem
                    assert Site(made, port).get("/nowhere").status == 404
        good = WebuiSettings.model_validate({"port": other, "address": ["127.0.0.1"], "host_names": ["new.example"]})
        config = made.config.model_copy(update={"webui": good})
        assert made.ask("webui", Apply(config=config, configuration="y", dry=True)).problem is None
        assert Site(made, port).get("/nowhere").status == 404
        assert made.ask("webui", Apply(config=config, configuration="y")).problem is None
        assert Site(made, other).get("/nowhere", Host="new.example").status == 404
        with pytest.raises(ConnectionRefusedError):
            Site(made, port).get("/")


def test_it_ends_quickly_on_sigterm_with_a_connection_open() -> None:
    port = free_port()
    with instance(webui={"port": port, "address": "127.0.0.1"}) as made:
        made.start("webui")
        with socket.create_connection(("127.0.0.1", port)) as idle:
            idle.sendall(b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert idle.recv(100).startswith(b"HTTP/1.1 404")
            assert made.stop("webui") == 0, made.log("webui")
        assert "traceback" not in made.log("webui")


def test_an_unknown_session_id_is_not_asked_for(site: Site) -> None:
    assert site.get(f"/sessions/{new_id()}").status == 404
    assert site.get("/sessions/<script>").status == 404
