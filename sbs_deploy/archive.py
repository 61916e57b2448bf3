"""ZIP archives without compression, which start with a list of their members.

Without compression the bytes depend on the contents alone, and an archive cannot unpack to more bytes than it has
(weights hardly compress anyway). The hashes find damage; they do not say who made the archive.
An archive may come from anywhere, so only members of known names are accepted, and the list is checked before a byte is
written.
"""

import contextlib
import hashlib
import json
import os
import shutil
import stat
import struct
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sbs_train.contract import rundir
from sbs_train.contract.bounds import BUNDLE_BYTES, BUNDLE_LIST_BYTES
from sbs_train.contract.errors import SbsError

FORMAT = 1
"""Version of the archive and its list; raise it when older versions cannot read them."""
INDEX = "bundle.json"
"""Name of the list, which is the first member."""
_CHUNK = 2**20
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time of every member, the earliest that ZIP has."""
_END = struct.Struct("<4s4H2LH")
"""End record of a ZIP without a comment; PKWARE's APPNOTE.TXT, 4.3.16."""
_ZIP64_END_BYTES = 20

_REMEDY = "copy it again, or make it again with `sbs-deploy bundle`"
_DAMAGED = (zipfile.BadZipFile, struct.error, ValueError, RuntimeError, EOFError, KeyError, OverflowError)
"""Errors that zipfile raises for damaged, encrypted or unknown archives."""


class Member(BaseModel):
    """Size and hash of a file in the archive."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: Annotated[int, Field(ge=0)]
    sha256: str


class Index(BaseModel):
    """bundle.json: the list of all other members."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = FORMAT
    members: dict[str, Member]
    """Files by path, with slashes, below the directory that the archive is unpacked to."""

    def text(self) -> str:
        """The stored JSON."""
        return self.model_dump_json(indent=1) + "\n"


def write_archive(root: Path, names: Collection[str], out: Path) -> Index:
    """Write the files `names` below `root` to `out`, atomically; the same files give the same bytes.

    Raises:
        SbsError: the files are too large together, or `out` cannot be written.
    """
    sizes = {name: (root / name).stat().st_size for name in sorted(names)}
    if sum(sizes.values()) > BUNDLE_BYTES - BUNDLE_LIST_BYTES:
        raise SbsError(
            f"{out}: {sum(sizes.values()) / 2**30:.1f} GiB is over the 2 GiB of an archive; use --images 100"
        )
    index = Index(
        members={name: Member(bytes=size, sha256=rundir.sha256_of(root / name)) for name, size in sizes.items()}
    )
    with rundir.atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=False) as archive:
        archive.writestr(_entry(INDEX), index.text())
        for name in sizes:
            with (root / name).open("rb") as source, archive.open(_entry(name), "w") as sink:
                shutil.copyfileobj(source, sink, _CHUNK)
    return index


def read_index(path: Path, known: Collection[str]) -> Index:
    """The list of an archive; SbsError for damage, and for names that are not `known`."""
    with _reading(path) as archive:
        return _checked(path, archive, known)


def unpack(path: Path, known: Collection[str], into: Path) -> Index:
    """Write the members of the archive, and its list, below the empty directory `into`.

    Raises:
        SbsError: the archive is damaged (nothing is written), or a member's bytes do not match the list (the caller
            removes `into`).
    """
    with _reading(path) as archive:
        index = _checked(path, archive, known)
        for name, member in index.members.items():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, (into / name).open("xb") as sink:
                digest, count = hashlib.sha256(), 0
                while count <= member.bytes and (chunk := source.read(_CHUNK)):
                    digest.update(chunk)
                    count += len(chunk)
                    sink.write(chunk)
                sink.flush()
                os.fsync(sink.fileno())
            if count != member.bytes or digest.hexdigest() != member.sha256:
                raise SbsError(f"{path} is damaged ({name} does not match its hash); {_REMEDY}")
        rundir.write_text(into / INDEX, index.text())
    return index


def _entry(name: str) -> zipfile.ZipInfo:
    """The header of a member, without traces of this machine and the time of day."""
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.create_system = 3
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    return entry


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        _check_end(path)
        with zipfile.ZipFile(path) as archive:
            yield archive
    except SbsError:
        raise
    except _DAMAGED as error:
        raise SbsError(f"{path} is damaged ({error}); {_REMEDY}") from error
    except OSError as error:
        reason = error.strerror or error
        raise SbsError(f"cannot unpack {path} ({reason}); copy it to where you can write, with space enough") from error


def _check_end(path: Path) -> None:
    """SbsError for a long table of contents, which zipfile would read as a whole."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _END.size - _ZIP64_END_BYTES))
        tail = file.read()
    end = tail[-_END.size :]
    if len(end) < _END.size or end[:4] != b"PK\5\6" or end[-2:] != b"\0\0":
        raise SbsError(f"{path} is not a whole bundle; {_REMEDY}")
    table_bytes = _END.unpack(end)[5]
    if table_bytes > BUNDLE_LIST_BYTES or tail.startswith(b"PK\6\7"):
        raise SbsError(f"{path} is no bundle (its table of contents is too long); {_REMEDY}")


def _checked(path: Path, archive: zipfile.ZipFile, known: Collection[str]) -> Index:
    """The list of an archive whose every entry is a plain, stored file of a known name and of the listed size."""
    entries = archive.infolist()
    names = [entry.orig_filename for entry in entries]  # zipfile normalises `filename`
    for entry in entries:
        name = entry.orig_filename
        if name not in (INDEX, *known):
            raise SbsError(f"{path} is no bundle (unexpected member {name!r}); {_REMEDY}")
        if names.count(name) > 1:
            raise SbsError(f"{path} is no bundle (it holds {name} twice); {_REMEDY}")
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            raise SbsError(f"{path} is no bundle ({name} is not a plain file); {_REMEDY}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise SbsError(f"{path} is no bundle ({name} is compressed); {_REMEDY}")
    if sum(entry.file_size for entry in entries) > min(path.stat().st_size, BUNDLE_BYTES):
        raise SbsError(f"{path} is no bundle (it claims to hold more than it does); {_REMEDY}")
    if INDEX not in names or archive.getinfo(INDEX).file_size > BUNDLE_LIST_BYTES:
        raise SbsError(f"{path} is no bundle (no {INDEX}, or not one of ours); {_REMEDY}")
    index = _index_from(path, archive.read(INDEX))
    if {entry.orig_filename: entry.file_size for entry in entries if entry.orig_filename != INDEX} != {
        name: member.bytes for name, member in index.members.items()
    }:
        raise SbsError(f"{path} is damaged ({INDEX} does not list what it holds); {_REMEDY}")
    return index


def _index_from(path: Path, text: bytes) -> Index:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SbsError(f"{path}: {INDEX} is damaged ({error}); {_REMEDY}") from error
    version = value.get("schema_version") if isinstance(value, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise SbsError(f"{path}: format {version} is newer than {FORMAT}; install a newer sbs-vision")
    try:
        return Index.model_validate(value)
    except ValidationError as error:
        raise SbsError(f"{path}: {INDEX} is damaged ({error.errors()[0]['msg']}); {_REMEDY}") from error
