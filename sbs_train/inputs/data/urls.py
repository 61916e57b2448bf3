"""Where shards lie: webdataset's syntax for many of them, and copies of those that lie on a server."""

import contextlib
import fcntl
import hashlib
import http.client
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sbs_train.contract.console import print_progress
from sbs_train.contract.errors import SbsError

DOWNLOADS_AT_ONCE = 4
ATTEMPTS = 4
TIMEOUT_S = 60
CHUNK = 1 << 20


def expand(urls: str) -> list[str]:
    """Single paths and URLs, from braces and `::`.

    >>> expand("a-{00..02}.tar::http://host/b.tar")
    ['a-00.tar', 'a-01.tar', 'a-02.tar', 'http://host/b.tar']
    """
    from webdataset.shardlists import expand_urls

    try:
        found: list[str] = expand_urls(urls)
    except (ValueError, AssertionError) as error:  # the latter from ${NAME} without WDS_NAME in the environment
        raise SbsError(f"wds:{urls}: {error}; write numbered shards as name-{{000..009}}.tar") from error
    return found


def local_shards(urls: str, directory: Path, copies: Path) -> list[Path]:
    """The local files of all shards, in order; what lies on a server is copied to `copies` first, once.

    Args:
        directory: what relative paths are relative to.

    Raises:
        SbsError: malformed, a scheme other than http(s), or a download that fails.
    """
    places = [_place(url, directory, copies) for url in expand(urls)]
    if not places:
        raise SbsError(f"wds:{urls} names no shard; give paths or http(s) URLs of .tar files")
    missing = [(url, path) for url, path in places if url is not None and not path.exists()]
    if missing:
        print_progress(f"copying {len(missing)} shards to {copies}, once")
        _download_all(missing)
    return [path for _, path in places]


def _place(url: str, directory: Path, copies: Path) -> tuple[str | None, Path]:
    scheme, colon, rest = url.partition(":")
    if scheme in ("http", "https"):
        name = url.partition("?")[0].rpartition("/")[2]
        return url, copies / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    if scheme == "file":
        return None, Path(rest.removeprefix("//"))
    if colon and (scheme == "pipe" or rest.startswith("//")):
        # pipe: runs a command; a run directory from somewhere else must not be able to name one.
        raise SbsError(f"{url}: {scheme}: is not read; give local paths or http(s) URLs, or copy the shards first")
    return None, directory / Path(url).expanduser()


def _download_all(missing: Sequence[tuple[str, Path]]) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        jobs = [pool.submit(_download, url, path, stop) for url, path in missing]
        try:
            for job in jobs:
                job.result()
        finally:
            stop.set()  # after an error or Ctrl-C the others need not go on
            pool.shutdown(cancel_futures=True)


def _download(url: str, path: Path, stop: threading.Event) -> None:
    """One shard, whole or not at all; processes that want the same one wait for the first."""
    with contextlib.ExitStack() as stack:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(path.with_name(f"{path.name}.lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _fetch(url, path, stop)


def _fetch(url: str, path: Path, stop: threading.Event) -> None:
    part = path.with_name(f"{path.name}.part")
    reason = ""
    try:
        for attempt in range(ATTEMPTS):
            if stop.wait(2**attempt - 1):
                return
            try:
                with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
                    received = _copy(response, part, stop)
                    expected = int(response.headers.get("Content-Length", received))
            except (OSError, http.client.HTTPException) as error:
                reason = str(error)
                if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                    break  # not there, or not for us: asking again changes nothing
                continue
            if stop.is_set():
                return
            if received == expected:
                part.replace(path)
                return
            reason = f"{received} of {expected} bytes came"
    finally:
        part.unlink(missing_ok=True)
    raise SbsError(f"cannot download {url} ({reason}); check the URL in --data and the network")


def _copy(response: http.client.HTTPResponse, part: Path, stop: threading.Event) -> int:
    received = 0
    with _writing(part):
        file = part.open("wb")
    with file:
        while not stop.is_set() and (chunk := response.read(CHUNK)):
            with _writing(part):
                file.write(chunk)
            received += len(chunk)
    return received


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Tells a full disk from a broken connection."""
    try:
        yield
    except OSError as error:
        raise SbsError(
            f"cannot write {path} ({error.strerror or error}); free space, or name another directory by --data-dir"
        ) from error
