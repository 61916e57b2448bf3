"""Local paths of shards, and downloads of shards from servers."""

import contextlib
import errno
import fcntl
import hashlib
import http.client
import shutil
import tarfile
import threading
import urllib.error
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sbs_train.contract.console import print_progress
from sbs_train.contract.errors import SbsError
from sbs_train.contract.urls import require_url, shown
from sbs_train.inputs.data.names import expand
from sbs_train.inputs.data.replies import Refused, ask

DOWNLOADS_AT_ONCE = 4
ATTEMPTS = 4
CHUNK = 1 << 20


def local_shards(urls: str, directory: Path, copies: Path) -> list[Path]:
    """Local files of all shards, in order; shards on a server are downloaded to `copies` once.

    Args:
        directory: base of relative paths.

    Raises:
        SbsError: a URL is malformed or not http(s), or a download fails.
    """
    places = [_place(url, directory, copies) for url in expand(urls)]
    if not places:
        raise SbsError(f"wds:{shown(urls)} names no shard; give paths or http(s) URLs of .tar files")
    missing = [(url, path) for url, path in places if url is not None and not path.exists()]
    if missing:
        print_progress(f"copying {len(missing)} shards to {copies}, once")
        _download_all(missing)
    return [path for _, path in places]


def _place(url: str, directory: Path, copies: Path) -> tuple[str | None, Path]:
    """The URL of a shard (None for a local shard), and its local path; SbsError if the name is malformed."""
    scheme, colon, rest = url.partition(":")
    if not url or "\0" in url:
        raise SbsError("an empty name among the shards of --data; give paths or http(s) URLs of .tar files")
    if scheme in ("http", "https"):
        require_url(url)
        name = url.partition("?")[0].rpartition("/")[2]
        return url, copies / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    if scheme == "file":
        return None, Path(rest.removeprefix("//"))
    if colon and (scheme == "pipe" or rest.startswith("//")):
        # pipe: runs a command, which a run directory from elsewhere must not be able to name.
        raise SbsError(
            f"{shown(url)}: {scheme}: is not read; give local paths or http(s) URLs, or copy the shards first"
        )
    return None, directory / Path(url).expanduser()


def _download_all(missing: Sequence[tuple[str, Path]]) -> None:
    """Download shards, several at a time; the first error ends all downloads."""
    stop = threading.Event()
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        jobs = [pool.submit(_download, url, path, stop) for url, path in missing]
        try:
            for job in jobs:
                job.result()
        finally:
            stop.set()  # an error or Ctrl-C stops the other downloads
            pool.shutdown(cancel_futures=True)


def _download(url: str, path: Path, stop: threading.Event) -> None:
    """Download one shard, whole or not at all; other processes that need the shard wait."""
    with contextlib.ExitStack() as stack:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(path.with_name(f"{path.name}.lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _fetch(url, path, stop)


def _fetch(url: str, path: Path, stop: threading.Event) -> None:
    """Download one shard to `path`, in several attempts, until `stop` is set; SbsError says why all failed."""
    part = path.with_name(f"{path.name}.part")
    reason = ""
    try:
        for attempt in range(ATTEMPTS):
            if stop.wait(2**attempt - 1):
                return
            try:
                response, expected = ask(url)
                with response:
                    received = _copy(response, part, stop, expected)
            except Refused as error:
                reason = str(error)
                break
            except (OSError, http.client.HTTPException) as error:
                if not isinstance(error, urllib.error.HTTPError):
                    reason = str(error)
                    continue
                reason = f"the server answers {error.code}"  # without the error's text, which may be a URL with a key
                if error.code < 500:
                    break  # missing or forbidden: retrying does not help
                continue
            if stop.is_set():
                return
            if received == expected:
                _require_tar(part)
                part.replace(path)
                return
            reason = f"{received} of {expected} bytes came"
    except tarfile.TarError:
        reason = "what came is no .tar file, but perhaps a page that says why"
    finally:
        part.unlink(missing_ok=True)
    reason = "".join(sign if sign.isprintable() else " " for sign in reason)[:200]
    raise SbsError(f"cannot download {shown(url)} ({reason}); check the URL in --data and the network")


def _copy(response: http.client.HTTPResponse, part: Path, stop: threading.Event, expected: int) -> int:
    """Write a body of `expected` bytes to `part`; returns the bytes received. SbsError if the disk is full."""
    received = 0
    with _writing(part):
        free = shutil.disk_usage(part.parent).free
        if free < expected:
            raise OSError(errno.ENOSPC, f"{expected:,} bytes are to come, and {free:,} are free")
        file = part.open("wb")
    with file:
        while not stop.is_set() and (chunk := response.read1(CHUNK)):
            with _writing(part):
                file.write(chunk)
            received += len(chunk)
    return received


def _require_tar(part: Path) -> None:
    """TarError unless the file starts like a shard: a kept file is never downloaded again."""
    with part.open("rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
    if head != bytes(tarfile.BLOCKSIZE):  # an empty tar file
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn errors of writing `path` into SbsError: unlike a broken connection, they are not retried."""
    try:
        yield
    except OSError as error:
        raise SbsError(
            f"cannot write {path} ({error.strerror or error}); free space, or name another directory by --data-dir"
        ) from error
