"""Passwords of servers: in no message, and sent to their own host alone."""

import base64

import pytest

from sbs_train.contract.errors import SbsError
from sbs_train.inputs.data import load_dataset, urls
from tests.sbs_train.inputs.test_data_urls import LENGTH, answering, fetch, server

__all__ = ["server"]  # a fixture


def test_passwords_come_from_netrc_and_stay_with_their_host(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    answering(monkeypatch, server, [LENGTH])
    fetch(server, tmp_path)
    assert server.logins == ["Basic " + base64.b64encode(b"me:secret").decode()]
    port = server.http.server_port
    answering(monkeypatch, server, [("Location", f"http://localhost:{port}/b.tar")], status=302)
    with pytest.raises(SbsError):
        fetch(server, tmp_path, "c.tar")
    assert server.logins[0] is not None and set(server.logins[1:]) == {None}
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 secret")
    with pytest.raises(SbsError, match="netrc cannot be read") as caught:
        fetch(server, tmp_path, "d.tar")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://me:secret@127.0.0.1/a.tar",
        "http://secret@127.0.0.1/a.tar",
        "https://me:secret@[::1]/a.tar",
        "HTTP://me:secret@127.0.0.1/a.tar",
        "http://me:sec/ret@127.0.0.1:x/secret@a.tar",
        "http://127.0.0.1:secret@/a.tar",
        "http:me:secret@127.0.0.1/a.tar",
        "s3://me:secret@bucket/a.tar",
        "a.tar::http://me:secret@127.0.0.1/a-{00..01}.tar",
        "http://127.0.0.1:1/a.tar?key=secret",
        "http://127.0.0.1:1/a b.tar?key=secret",
        "http://127.0.0.1:x/a.tar?key=secret",
        "http://127.0.0.1:1/a.tar?key=secret{00..",
        "http://127.0.0.1:1/{00..99999999}.tar?key=secret",
    ],
)
def test_no_message_holds_a_password(url, server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (url, f"wds:{url}"):
        with pytest.raises(SbsError) as caught:
            load_dataset(name, tmp_path)
        assert "secret" not in str(caught.value) and "ret@" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http:///a.tar", "http://h:0/a.tar", "http://h\n/a.tar", "http://größe/a.tar", "http:a"]
)
def test_what_is_no_url_is_refused(url, tmp_path):
    with pytest.raises(SbsError, match="is no URL; write http"):
        urls.local_shards(url, tmp_path, tmp_path)
