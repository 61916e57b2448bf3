"""Atomic files, manifests and the link to the newest run. Tests run as root too, so no test relies on file modes."""

import json
from pathlib import Path

import pytest

from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.rundir import RunDir


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def under_a_file(tmp_path: Path) -> Path:
    """A path no user can write to: its parent is a regular file."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "run"


def test_write_replaces_the_whole_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "value.json"
    rundir.write_json(path, {"a": "×" * 1000})
    rundir.write_json(path, {"a": 1})
    assert rundir.read_json(path) == {"a": 1}
    assert names(path.parent) == ["value.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SbsError])
def test_a_failure_inside_the_block_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")
    with pytest.raises(error), rundir.atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["model.onnx"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")
    with pytest.raises(SbsError, match="No space left on device"), rundir.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["model.onnx"]


def test_the_old_file_is_there_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")
    with rundir.atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_it_cannot_hold(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        rundir.write_json(tmp_path / "value.json", {"latency_ms": value})
    assert names(tmp_path) == []


def test_unwritable_directories_are_one_line_errors(under_a_file: Path) -> None:
    for write in (
        lambda: rundir.create_run(under_a_file),
        lambda: rundir.write_text(under_a_file / "x.json", "{}"),
    ):
        with pytest.raises(SbsError, match="--out|name another file") as caught:
            write()
        assert "\n" not in str(caught.value)
        assert str(under_a_file) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00", b"[1, 2"])
def test_damaged_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(SbsError, match="is damaged") as caught:
        rundir.read_json(path)
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(SbsError, match="cannot read .*absent"):
        rundir.read_json(tmp_path / "absent.json")
    with pytest.raises(SbsError, match="cannot read .*absent"):
        rundir.sha256_of(tmp_path / "absent.json")
    with pytest.raises(SbsError, match="make it with `sbs-train`"):
        RunDir(tmp_path).require(tmp_path / "plan.json", "sbs-train")


def test_open_run_tells_a_run_from_another_directory(tmp_path: Path) -> None:
    with pytest.raises(SbsError, match="no run at .*; make one with `sbs-train`"):
        rundir.open_run(tmp_path / "absent")
    with pytest.raises(SbsError, match="is not a run directory"):
        rundir.open_run(tmp_path)
    run = rundir.create_run(tmp_path / "runs" / "a")
    rundir.write_json(run.config, {})
    assert rundir.open_run(run.root) == run


def test_hashes() -> None:
    assert rundir.hash_of({"a": 1, "b": 2}) == rundir.hash_of({"b": 2, "a": 1})
    assert rundir.hash_of({"a": 1}) != rundir.hash_of({"a": 2})


class TestManifest:
    """A stage skips itself exactly when its output and its inputs are what they were."""

    MADE_FROM = {"plan.json": "0" * 64, "engine": "int8"}

    @pytest.fixture
    def artifact(self, tmp_path: Path) -> Path:
        path = tmp_path / "model.onnx"
        path.write_bytes(b"graph")
        rundir.write_manifest(path, self.MADE_FROM, versions={"onnx": "1.2"}, details={"opset": 21})
        return path

    def test_round_trip(self, artifact: Path) -> None:
        manifest = rundir.read_manifest(artifact)
        assert manifest.made_from == self.MADE_FROM
        assert manifest.versions == {"onnx": "1.2"}
        assert manifest.details == {"opset": 21}
        assert manifest.sha256 == rundir.sha256_of(artifact)
        assert rundir.require_whole(artifact, "sbs-deploy export") == manifest

    def test_current_while_nothing_changes(self, artifact: Path) -> None:
        assert rundir.is_current(artifact, self.MADE_FROM)

    def test_stale_after_an_input_changes(self, artifact: Path) -> None:
        assert not rundir.is_current(artifact, {**self.MADE_FROM, "plan.json": "1" * 64})
        assert not rundir.is_current(artifact, {**self.MADE_FROM, "weights": "1" * 64})
        assert not rundir.is_current(artifact, {"engine": "int8"})

    def test_stale_after_the_artifact_changes(self, artifact: Path) -> None:
        artifact.write_bytes(b"grapi")
        assert not rundir.is_current(artifact, self.MADE_FROM)
        with pytest.raises(SbsError, match="changed after it was made; make it again with `sbs-deploy export`"):
            rundir.require_whole(artifact, "sbs-deploy export")

    @pytest.mark.parametrize("content", ["", "{}", '{"sha256": "x", "made_from": {}, "extra": 1}'])
    def test_a_damaged_manifest_is_stale(self, artifact: Path, content: str) -> None:
        rundir.manifest_path(artifact).write_text(content)
        assert not rundir.is_current(artifact, self.MADE_FROM)
        with pytest.raises(SbsError):
            rundir.read_manifest(artifact)

    def test_an_artifact_without_a_manifest_is_unfinished(self, artifact: Path) -> None:
        rundir.manifest_path(artifact).unlink()
        assert not rundir.is_current(artifact, self.MADE_FROM)

    def test_a_missing_artifact(self, artifact: Path) -> None:
        artifact.unlink()
        assert not rundir.is_current(artifact, self.MADE_FROM)
        with pytest.raises(SbsError, match="is missing; make it with `sbs-deploy export`"):
            rundir.require_whole(artifact, "sbs-deploy export")

    def test_the_file_is_readable_json(self, artifact: Path) -> None:
        value = json.loads(rundir.manifest_path(artifact).read_text())
        assert value["schema_version"] == 1


class TestLinkLatest:
    def test_points_to_the_newest_run(self, tmp_path: Path) -> None:
        for name in ("first", "second"):
            rundir.link_latest(rundir.create_run(tmp_path / name))
            assert (tmp_path / "latest").resolve() == (tmp_path / name).resolve()
        assert names(tmp_path) == ["first", "latest", "second"]

    def test_the_link_survives_a_move(self, tmp_path: Path) -> None:
        rundir.link_latest(rundir.create_run(tmp_path / "runs" / "first"))
        (tmp_path / "runs").rename(tmp_path / "moved")
        assert (tmp_path / "moved" / "latest" / "checkpoints").is_dir()

    def test_replaces_a_dangling_link(self, tmp_path: Path) -> None:
        (tmp_path / "latest").symlink_to("gone")
        rundir.link_latest(rundir.create_run(tmp_path / "first"))
        assert (tmp_path / "latest").is_dir()

    def test_leaves_a_real_directory_alone(self, tmp_path: Path) -> None:
        (tmp_path / "latest").mkdir()
        rundir.link_latest(rundir.create_run(tmp_path / "first"))
        assert not (tmp_path / "latest").is_symlink()

    def test_a_run_named_through_the_link_keeps_it_whole(self, tmp_path: Path) -> None:
        rundir.link_latest(rundir.create_run(tmp_path / "first"))
        rundir.link_latest(RunDir(tmp_path / "latest"))
        assert (tmp_path / "latest").resolve() == (tmp_path / "first").resolve()

    def test_the_current_directory_as_a_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run = rundir.create_run(tmp_path / "first")
        monkeypatch.chdir(run.root)
        rundir.link_latest(RunDir(Path()))
        assert (tmp_path / "latest").resolve() == run.root.resolve()

    def test_a_link_that_cannot_be_made_does_not_end_the_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        run = rundir.create_run(tmp_path / "first")
        monkeypatch.setattr(Path, "symlink_to", refuse)
        rundir.link_latest(run)
        assert names(tmp_path) == ["first"]


def test_a_replaced_artifact_has_no_manifest_until_it_gets_its_own(tmp_path: Path) -> None:
    artifact = tmp_path / "golden.npz"
    rundir.write_text(artifact, "one")
    rundir.write_manifest(artifact, {})
    rundir.write_text(artifact, "two")
    assert not rundir.manifest_path(artifact).exists(), "it describes the first content"
    with pytest.raises(RuntimeError), rundir.atomic_path(artifact):
        rundir.write_manifest(artifact, {})
        raise RuntimeError
    assert rundir.is_current(artifact, {}), "nothing was replaced"
