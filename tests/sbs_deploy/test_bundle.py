"""A bundle holds what a device needs and nothing else; an archive that is not in order leaves no trace."""

import io
import json
import os
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("onnxruntime")

from sbs_deploy import archive
from sbs_deploy.bundle import EXPORTED, KNOWN, WrittenBundle, make_bundle, open_bundle
from sbs_deploy.cli import main
from sbs_deploy.export.codes import load_arrays
from sbs_deploy.validate.run import validate_run, validation_is_current
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.rundir import RunDir
from tests.sbs_deploy.corruption import signed
from tests.sbs_deploy.whole_run import TAPS, make_whole_run

NAMES = ["config.json", "deploy/golden.npz", "plan.json"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Do not write."""
    return make_whole_run(tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture
def run(whole: RunDir, tmp_path: Path) -> RunDir:
    shutil.copytree(whole.root, tmp_path / "runs" / "small")
    return RunDir(tmp_path / "runs" / "small")


@pytest.fixture
def file(run: RunDir, tmp_path: Path) -> Path:
    """A bundle, alone on its device."""
    path = tmp_path / "device" / "small.sbs.zip"
    make(run, path)
    return path


def make(run: RunDir, out: Path, images: int = 1000) -> WrittenBundle:
    return make_bundle(run, out, images=images, progress=lambda line: None)


def opened(path: Path) -> RunDir:
    return open_bundle(path, lambda line: None)


def files_below(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("sbs-deploy: error: ")
    return line


def test_it_holds_what_a_device_needs_and_nothing_else(run: RunDir, tmp_path: Path) -> None:
    rundir.write_text(run.weights, "not for the device")
    rundir.write_text(run.engines / "model.int8.onnxruntime.onnx", "of this machine")
    before = files_below(run.root)
    made = make(run, tmp_path / "device" / "other name.sbs.zip")
    assert files_below(run.root) == before
    assert [path.name for path in made.path.parent.iterdir()] == [made.path.name], "leftovers"
    unpacked = files_below(opened(made.path).root)
    del unpacked[archive.INDEX]
    assert set(unpacked) == KNOWN
    assert unpacked == {name: before[name] for name in KNOWN}
    assert made.images == 12


def test_equal_runs_give_equal_bytes(run: RunDir, tmp_path: Path) -> None:
    for name, images in (("a", 1000), ("b", 5)):
        first, second = (tmp_path / where / f"{name}.sbs.zip" for where in ("x", "y"))
        make(run, first, images)
        for path in run.root.rglob("*"):
            os.utime(path, (1, 1))
        make(run, second, images)
        assert first.read_bytes() == second.read_bytes()


def test_fewer_golden_images(run: RunDir, tmp_path: Path) -> None:
    made = make(run, tmp_path / "few.sbs.zip", 5)
    few, all_ = opened(made.path), load_arrays(run.golden)
    golden = load_arrays(few.golden)
    assert made.images == 5 and golden.keys() == all_.keys()
    for key, array in golden.items():
        assert np.array_equal(array, all_[key] if key.startswith("tap/") else all_[key][:5]), key
    rundir.require_whole(few.golden, "the test")
    assert validation_is_current(few) and rundir.read_json(few.validation)["samples"] == 5
    with pytest.raises(SbsError, match=f"--images 1 must be at least {TAPS}"):
        make(run, tmp_path / "one.sbs.zip", TAPS - 1)


def test_a_bundle_can_be_made_of_an_unpacked_one(file: Path, tmp_path: Path) -> None:
    again = make(opened(file), tmp_path / "again" / "small.sbs.zip")
    assert again.path.read_bytes() == file.read_bytes()


def test_what_torch_exported_travels(exported: RunDir, tmp_path: Path) -> None:
    run = opened(make(exported, tmp_path / "real.sbs.zip", 50).path)
    assert validate_run(run).passed


def test_a_bundle_is_built_where_torch_is_too(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    assert main(["build", str(file), "--backend", "onnxruntime", "--placement", "plan"]) == 0
    assert "export: a bundle, using the files that came with the run" in capsys.readouterr().err


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("relative", [path.as_posix() for path in EXPORTED])
@pytest.mark.parametrize("spoil", [damage, Path.unlink, lambda path: rundir.manifest_path(path).unlink()])
def test_only_whole_exports(
    run: RunDir, relative: str, spoil: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(run.root / relative)
    out = tmp_path / "device" / "x.sbs.zip"
    assert main(["bundle", str(run.root), "--out", str(out)]) == 2
    line = error_line(capsys)
    assert Path(relative).name in line and f"`sbs-deploy export {run.root}`" in line
    assert not out.parent.exists()


@pytest.mark.parametrize("name", ["plan", "config", "model_slim", "codes"])
def test_only_exports_of_what_lies_here(run: RunDir, name: str, tmp_path: Path) -> None:
    path: Path = getattr(run, name)
    if path.suffix == ".json":
        rundir.write_json(path, rundir.read_json(path))
        path.write_text(path.read_text() + "\n")
    else:
        path.write_bytes(path.read_bytes() + b"\0")
        signed(path)
    with pytest.raises(SbsError, match=rf"made from another {path.name}; make it again with `sbs-deploy export`"):
        make(run, tmp_path / "x.sbs.zip")


def test_a_failed_gate_is_not_taken_along(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = load_arrays(run.golden)
    np.savez(run.golden, **{**golden, "output/logits": np.roll(golden["output/logits"], 1, axis=1)})
    signed(run.golden)
    assert main(["bundle", str(run.root), "--out", str(tmp_path / "x.sbs.zip")]) == 1
    assert "validation failed" in error_line(capsys)
    assert not (tmp_path / "x.sbs.zip").exists()


def test_the_command(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bundle", str(run.root), "--images", "4", "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    path = tmp_path / "small.sbs.zip"
    assert (document["bundle"], document["images"]) == ("small.sbs.zip", 4)
    assert (document["sha256"], document["bytes"]) == (rundir.sha256_of(path), path.stat().st_size)
    assert document["members"]["plan.json"]["sha256"] == rundir.sha256_of(run.plan)
    assert main(["report", "small.sbs.zip"]) == 0
    assert (tmp_path / "small" / "deploy" / "report.html").is_file()
    for wrong in ("small.zip", ".sbs.zip", "...sbs.zip"):
        assert main(["bundle", str(run.root), "--out", wrong]) == 2
        assert "a bundle is known by its name" in error_line(capsys)
    assert main(["bundle", str(run.root), "--images", "0"]) == 2
    assert "--images 0" in error_line(capsys)


def test_it_is_unpacked_once(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = opened(file)
    validate_run(run)
    rundir.write_json(run.bench, {})
    stamp = run.plan.stat().st_mtime_ns
    assert opened(file) == run
    assert run.plan.stat().st_mtime_ns == stamp and run.bench.is_file()


def test_nothing_of_anyone_is_overwritten(file: Path, run: RunDir) -> None:
    beside = file.with_name("small")
    for in_the_way in (lambda: beside.mkdir(), lambda: beside.write_text("mine"), lambda: beside.symlink_to("nowhere")):
        in_the_way()
        with pytest.raises(SbsError, match="is in the way of .*; move one of the two elsewhere"):
            opened(file)
        beside.rmdir() if beside.is_dir() else beside.unlink()
    unpacked = opened(file)
    make(run, file, 3)
    with pytest.raises(SbsError, match="in the way"):
        opened(file)
    assert len(load_arrays(unpacked.golden)["labels"]) == 12
    with pytest.raises(SbsError, match="in the way"):
        opened(shutil.copy(file, run.root.parent / "small.sbs.zip"))  # beside the run that it was made of


def test_a_changed_directory_is_refused(file: Path) -> None:
    run = opened(file)
    damage(run.model_trt)
    with pytest.raises(SbsError, match=r"model.trt.onnx changed after it was unpacked; remove .*small to unpack"):
        opened(file)


def test_two_processes_at_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack = archive.unpack

    def while_another_is_faster(path: Path, known: object, into: Path) -> archive.Index:
        index = unpack(path, KNOWN, into)
        shutil.copytree(into, path.with_name("small"))
        return index

    monkeypatch.setattr(archive, "unpack", while_another_is_faster)
    assert validation_is_current(opened(file))
    assert sorted(path.name for path in file.parent.iterdir()) == ["small", "small.sbs.zip"]


def rewritten(path: Path, change: Callable[[list[tuple[zipfile.ZipInfo, bytes]]], None]) -> None:
    """Write the archive again with changed entries."""
    with zipfile.ZipFile(path) as old:
        entries = [(info, old.read(info)) for info in old.infolist()]
    change(entries)
    with zipfile.ZipFile(path, "w") as new:
        for info, data in entries:
            new.writestr(info, data, info.compress_type)


def with_member(name: str, mode: int = stat.S_IFREG | 0o644) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        info = zipfile.ZipInfo("placeholder")
        info.filename = name
        info.external_attr = mode << 16
        rewritten(path, lambda entries: entries.append((info, b"/etc/passwd")))

    return change


def with_mode(mode: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        rewritten(path, lambda entries: setattr(entries[-1][0], "external_attr", mode << 16))

    return change


def compressed(path: Path) -> None:
    rewritten(path, lambda entries: [setattr(info, "compress_type", zipfile.ZIP_DEFLATED) for info, _ in entries])


def table_of(data: bytearray) -> int:
    """Offset of the table of contents."""
    end = data.rindex(b"PK\5\6")
    return int(struct.unpack("<L", data[end + 16 : end + 20])[0])


def bomb(path: Path) -> None:
    """Entries that share their bytes, so that together they are larger than the file."""
    data = bytearray(path.read_bytes())
    offset = table_of(data)
    while (offset := data.find(b"PK\1\2", offset + 4)) > 0:
        data[offset + 20 : offset + 28] = struct.pack("<2L", len(data), len(data))
    path.write_bytes(data)


def many(path: Path) -> None:
    rewritten(path, lambda entries: entries.extend((zipfile.ZipInfo(f"{i:050}"), b"") for i in range(1000)))


def in_index(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        def edit(entries: list[tuple[zipfile.ZipInfo, bytes]]) -> None:
            document = json.loads(entries[0][1])
            change(document)
            entries[0] = (entries[0][0], json.dumps(document).encode())

        rewritten(path, edit)

    return apply


def cut(bytes_: int) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[:bytes_])


def encrypted(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[table_of(data) + 8] |= 1
    path.write_bytes(data)


def commented(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as file:
        file.comment = b"PK\5\6"


def other_bytes(path: Path) -> None:
    """A whole archive, another content."""
    rewritten(path, lambda entries: entries.__setitem__(-1, (entries[-1][0], entries[-1][1][:-1] + b"!")))


HOSTILE = {
    "traversal": (with_member("../evil"), "unexpected member '../evil'"),
    "traversal inside": (with_member("deploy/../../evil"), "unexpected member"),
    "absolute": (with_member("/tmp/evil"), "unexpected member '/tmp/evil'"),
    "drive": (with_member("C:/evil"), "unexpected member 'C:/evil'"),
    "backslash": (with_member("..\\evil"), "unexpected member"),
    "other spelling": (with_member("./plan.json"), "unexpected member './plan.json'"),
    "other case": (with_member("PLAN.json"), "unexpected member 'PLAN.json'"),
    "after NUL": (with_member("plan.json\0/../evil"), "unexpected member"),
    "directory": (with_member("deploy/", stat.S_IFDIR | 0o755), "unexpected member 'deploy/'"),
    "twice": (with_member("plan.json"), "holds plan.json twice"),
    "link": (with_mode(stat.S_IFLNK | 0o777), "is not a plain file"),
    "device": (with_mode(stat.S_IFBLK | 0o666), "is not a plain file"),
    "compressed": (compressed, "is compressed"),
    "larger than the file": (bomb, "claims to hold more"),
    "many": (many, "table of contents is too long"),
    "unlisted": (in_index(lambda index: index["members"].pop("plan.json")), "does not list what it holds"),
    "other size": (in_index(lambda index: index["members"]["plan.json"].update(bytes=1)), "does not list"),
    "no such list": (in_index(lambda index: index.update(members=[])), "bundle.json is damaged"),
    "unknown key": (in_index(lambda index: index.update(more=1)), "bundle.json is damaged"),
    "newer": (in_index(lambda index: index.update(schema_version=2)), "install a newer"),
    "other bytes": (other_bytes, "does not match its hash"),
    "without a list": (lambda path: rewritten(path, lambda entries: entries.__delitem__(0)), "no bundle.json"),
    "encrypted": (encrypted, "encrypted"),
    "commented": (commented, "not a whole bundle"),
    "truncated": (cut(-1), "not a whole bundle"),
    "short": (cut(5), "not a whole bundle"),
    "empty": (cut(0), "not a whole bundle"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_leave_no_trace(
    name: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = HOSTILE[name]
    change(file)
    before = files_below(tmp_path)
    assert main(["validate", str(file)]) == 2
    assert message in error_line(capsys)
    assert files_below(tmp_path) == before
    assert [path.name for path in file.parent.iterdir()] == ["small.sbs.zip"]


def test_a_bundle_that_lacks_a_file(file: Path, run: RunDir) -> None:
    archive.write_archive(run.root, KNOWN - {"deploy/golden.npz"}, file)
    with pytest.raises(SbsError, match=r"lacks deploy/golden.npz; make it again with `sbs-deploy bundle`"):
        opened(file)


def test_other_files_are_no_bundles(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(run.model_ort)]) == 2
    assert "neither a run directory nor a bundle" in error_line(capsys)


@given(contents=st.fixed_dictionaries({name: st.binary(max_size=3000) for name in NAMES}))
def test_what_goes_in_comes_out(contents: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("archive")
    for name, data in contents.items():
        (root / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "in" / name).write_bytes(data)
    index = archive.write_archive(root / "in", NAMES, root / "x.zip")
    (root / "out").mkdir()
    assert archive.unpack(root / "x.zip", NAMES, root / "out") == index == archive.read_index(root / "x.zip", NAMES)
    assert {name: data for name, data in files_below(root / "out").items() if name != archive.INDEX} == contents
    with zipfile.ZipFile(io.BytesIO((root / "x.zip").read_bytes())) as other:
        assert other.testzip() is None
