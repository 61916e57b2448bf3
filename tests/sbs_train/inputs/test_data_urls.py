"""Names of shards, and copies of those on a server, which is a real one on this machine."""

import contextlib
import io
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from sbs_train.contract import bounds
from sbs_train.contract.errors import SbsError
from sbs_train.inputs.data import load, load_dataset, urls
from tests.sbs_train.inputs.test_data_shards import COUNT, write


def tar_of(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


CONTENT = tar_of({"a.txt": bytes(range(256)) * 20})


class Server:
    """Answers GET from `content`; the first `failures` answers to each path are cut short or errors."""

    def __init__(self):
        self.content = {}
        self.asked = []
        self.failures = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, request):
        path = request.path.partition("?")[0]
        self.asked.append(request.path)
        if path not in self.content:
            request.send_error(404)
        elif self.failures.get(path, []):
            failure = self.failures[path].pop()
            if failure == "error":
                request.send_error(503)
                return
            request.send_response(200)
            request.send_header("Content-Length", str(len(self.content[path])))
            request.end_headers()
            request.wfile.write(self.content[path][:100])
        else:
            request.send_response(200)
            request.send_header("Content-Length", str(len(self.content[path])))
            request.end_headers()
            request.wfile.write(self.content[path])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    real = threading.Event.wait
    monkeypatch.setattr(threading.Event, "wait", lambda self, timeout=None: real(self, timeout and timeout / 100))
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_paths_are_relative_to_the_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    found = urls.local_shards("a.tar::/b.tar::~/c.tar::file:/d.tar::file:///e.tar", tmp_path, tmp_path)
    assert found == [tmp_path / "a.tar", *map(Path, ("/b.tar", "/home/me/c.tar", "/d.tar", "/e.tar"))]


@pytest.mark.parametrize("url", ["pipe:touch trap", "s3://bucket/a.tar", "gs://bucket/a.tar", "ftp://host/a.tar"])
def test_other_schemes_are_refused_and_no_command_is_run(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SbsError, match="is not read; give local paths or http"):
        load_dataset(f"wds:{url}")
    assert not list(tmp_path.iterdir())


def test_shards_on_a_server_are_copied_once(server, tmp_path, monkeypatch):
    monkeypatch.setattr(load, "CACHE", tmp_path / "cache")
    write(tmp_path)
    server.content = {f"/part-00{n}.tar": (tmp_path / f"part-00{n}.tar").read_bytes() for n in range(2)}
    for _ in range(2):
        data = load_dataset(f"wds:{server.url}/part-{{000..001}}.tar", image_size=8, workers=0)
        assert len(data.train) + len(data.val) + len(data.test) == 2 * COUNT
        assert sum(len(y) for _, y in data.eval_batches(data.val)) == len(data.val)
    assert sorted(server.asked) == ["/part-000.tar", "/part-001.tar"]
    place = tmp_path / "big disk"
    place.mkdir()
    load_dataset(f"wds:{server.url}/part-000.tar", place)
    assert any((place / "shards").glob("*-part-000.tar"))


def fetch(server, tmp_path, name="a.tar"):
    (path,) = urls.local_shards(f"{server.url}/{name}", tmp_path, tmp_path / "copies")
    return path


@pytest.mark.parametrize("failures", [["cut"], ["error"], ["cut", "error", "cut"]])
def test_a_broken_connection_is_tried_again(server, failures, tmp_path):
    server.content["/a.tar"] = CONTENT
    server.failures["/a.tar"] = list(failures)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == len(failures) + 1


@pytest.mark.parametrize(("failure", "reason"), [("cut", "100 of 10240 bytes"), ("error", "503")])
def test_a_server_that_stays_broken_is_named_and_nothing_half_is_kept(server, failure, reason, tmp_path):
    server.content["/a.tar"] = CONTENT
    server.failures["/a.tar"] = [failure] * 10
    with pytest.raises(SbsError, match=f"cannot download {server.url}/a.tar .*{reason}.*check the URL"):
        fetch(server, tmp_path)
    assert len(server.asked) == urls.ATTEMPTS
    assert [path.name for path in (tmp_path / "copies").iterdir() if path.suffix != ".lock"] == []
    server.failures.clear()
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_what_is_not_there_is_asked_for_once(server, tmp_path):
    with pytest.raises(SbsError, match=r"/b.tar .*404.*check the URL in --data"):
        fetch(server, tmp_path, "b.tar")
    assert server.asked == ["/b.tar"]


def test_a_server_that_does_not_answer_is_named(tmp_path, server):
    server.http.server_close()
    with pytest.raises(SbsError, match="cannot download .*Connection refused"):
        fetch(server, tmp_path)


def test_addresses_differ_in_what_follows_the_name(server, tmp_path):
    server.content["/a.tar"] = CONTENT
    first, second = fetch(server, tmp_path, "a.tar?version=1"), fetch(server, tmp_path, "a.tar?version=2")
    assert first != second and first.name.endswith("-a.tar") and second.name.endswith("-a.tar")


def test_processes_that_want_the_same_shard_copy_it_once(server, tmp_path):
    server.content["/a.tar"] = CONTENT
    threads = [threading.Thread(target=fetch, args=(server, tmp_path)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked == ["/a.tar"] and fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_place_that_cannot_be_written_to_is_named(server, tmp_path):
    server.content["/a.tar"] = CONTENT
    (tmp_path / "copies").write_text("a file")
    with pytest.raises(SbsError, match="cannot write .*another directory by --data-dir"):
        fetch(server, tmp_path)


# Answers that are no shard.


def answering(monkeypatch, server, headers, body=CONTENT, status=200, forever=b""):
    """Lets the server send these headers and bytes, then `forever` until the other side has gone, 64 MiB at most."""

    def answer(request):
        server.asked.append(request.path)
        server.logins.append(request.headers.get("Authorization"))
        request.send_response(status)
        for name, value in headers:
            request.send_header(name, value)
        request.end_headers()
        with contextlib.suppress(OSError):
            request.wfile.write(body)
            for _ in range((64 << 20) // len(forever) if forever else 0):
                request.wfile.write(forever)
                server.sent += len(forever)

    server.logins, server.sent = [], 0
    monkeypatch.setattr(server, "answer", answer)


LENGTH = ("Content-Length", str(len(CONTENT)))
CHUNKED = ("Transfer-Encoding", "chunked")


@pytest.mark.parametrize(
    ("headers", "options", "reason"),
    [
        ([("Content-Length", "abc")], {}, "Content-Length"),
        ([("Content-Length", "-1")], {}, "Content-Length"),
        ([("Content-Length", "1e3")], {}, "Content-Length"),
        ([("Content-Length", "")], {}, "Content-Length"),
        ([LENGTH, ("Content-Length", "7")], {}, "Content-Length"),
        ([("Content-Length", "9" * 5000)], {}, "bytes"),
        ([("Content-Length", str(1 << 62))], {}, "bytes"),
        ([("Content-Length", str(1 << 40))], {}, "bytes"),
        ([], {}, "Content-Length"),
        ([], {"forever": bytes(1 << 16)}, "Content-Length"),
        ([CHUNKED], {"body": b"a\r\n0123456789\r\n0\r\n\r\n"}, "Content-Length"),
        ([CHUNKED, LENGTH], {"body": b"a\r\n01234"}, "Content-Length"),
        ([CHUNKED], {"body": b"", "forever": b"10000\r\n" + bytes(1 << 16) + b"\r\n"}, "Content-Length"),
        ([LENGTH, ("Content-Encoding", "gzip")], {}, "packs"),
        ([LENGTH, ("Content-Range", "bytes 0-9/10")], {"status": 206}, "206"),
        ([("Content-Length", "0")], {"status": 204, "body": b""}, "204"),
        ([("Content-Length", "26")], {"body": b"<html>please log in</html>"}, "no .tar file"),
        ([("Content-Length", "1000")], {"body": b"<html>" + b"x" * 994}, "no .tar file"),
        ([("Content-Length", "0")], {"body": b""}, "no .tar file"),
        ([("Location", "file:///etc/passwd")], {"status": 302}, "302"),
        ([("Location", "ftp://127.0.0.1/a.tar")], {"status": 301}, "redirects to ftp"),
        ([("Location", "//me:secret@127.0.0.1/a.tar")], {"status": 307}, "redirects to http://…@127.0.0.1"),
        ([("Location", "pipe:touch trap")], {"status": 302}, "302"),
        ([("Location", "/a.tar")], {"status": 302}, "302"),
        ([LENGTH], {"status": 418}, "418"),
    ],
)
def test_an_answer_that_is_no_whole_shard_is_refused(server, headers, options, reason, tmp_path, monkeypatch):
    answering(monkeypatch, server, headers, **options)
    with pytest.raises(SbsError, match=f"cannot download {server.url}/a.tar .*{reason}") as caught:
        fetch(server, tmp_path)
    assert "secret" not in str(caught.value) and len(str(caught.value)) < 500
    assert [path.name for path in (tmp_path / "copies").iterdir() if path.suffix != ".lock"] == []
    assert server.sent < 32 << 20 and len(server.asked) <= 12


def test_what_follows_a_whole_shard_is_not_read(server, tmp_path, monkeypatch):
    answering(monkeypatch, server, [LENGTH], forever=bytes(1 << 16))
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.sent < 32 << 20


def test_a_server_may_redirect(server, tmp_path):
    server.content["/b.tar"] = CONTENT
    real = server.answer

    def answer(request):
        if request.path == "/a.tar":
            request.send_response(302)
            request.send_header("Location", "/b.tar")
            request.end_headers()
        else:
            real(request)

    server.answer = answer
    assert fetch(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("slow", ["head", "body"])
def test_a_slow_answer_ends(server, slow, tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "REPLY_SECONDS", 0.5)
    monkeypatch.setattr(urls, "ATTEMPTS", 1)

    def answer(request):
        text = b"HTTP/1.0 200 OK\r\n" + (b"" if slow == "head" else b"Content-Length: 9999\r\n\r\n")
        with contextlib.suppress(OSError):
            request.wfile.write(text)
            for _ in range(200):
                request.wfile.write(b"a: b\r\n" if slow == "head" else b"x")
                time.sleep(0.05)

    server.answer = answer
    started = time.monotonic()
    with pytest.raises(SbsError, match="only [0-9]+ bytes came in"):
        fetch(server, tmp_path)
    assert time.monotonic() - started < 8


def test_a_disk_that_is_too_small_is_named_before_anything_comes(server, tmp_path, monkeypatch):
    answering(monkeypatch, server, [LENGTH])
    monkeypatch.setattr(urls.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(SbsError, match="10,240 bytes are to come, and 100 are free.*free space"):
        fetch(server, tmp_path)
