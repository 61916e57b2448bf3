"""Names of shards, and copies of those on a server, which is a real one on this machine."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sbs_train.contract.errors import SbsError
from sbs_train.inputs.data import load, load_dataset, urls
from tests.sbs_train.inputs.test_data_shards import COUNT, write

CONTENT = bytes(range(256)) * 40


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


def test_braces_and_colons():
    assert urls.expand("a-{00..02}.tar::http://h/b.tar") == ["a-00.tar", "a-01.tar", "a-02.tar", "http://h/b.tar"]
    assert urls.expand("{train,val}/{0..1}.tar") == ["train/0.tar", "train/1.tar", "val/0.tar", "val/1.tar"]


@pytest.mark.parametrize("pattern", ["a-{000..", "a-${NOWHERE}.tar"])
def test_malformed_names_are_refused(pattern):
    with pytest.raises(SbsError, match=r"numbered shards as name-\{000..009\}.tar"):
        urls.expand(pattern)


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
