"""Every format that SBS reads, with a small whole example and what reads it."""

import json
import random
import shutil
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz import alterations
from tests.sbs_deploy.corruption import Corruption

PAGE_EVERY = 25
"""One of so many altered files becomes a report page: charts take a second."""
Reader = Callable[[Path], object]
"""Takes the directory of the example, whose file is altered."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One kind of file."""

    name: str
    root: Path
    """A directory with a whole example; readers get it as it lies here."""
    file: str
    """The one that is altered, below `root`."""
    alterations: tuple[Corruption, ...]
    readers: tuple[Reader, ...]
    writes: tuple[str, ...] = ()
    """What readers may leave behind, as patterns below `root`."""


def all_formats(scratch: Path) -> list[Format]:
    """The examples, made below `scratch`."""
    return [*_run_files(scratch / "run"), *_training(scratch / "training"), *_data(scratch / "data")]


def _run_files(root: Path) -> list[Format]:
    from sbs_deploy.backends.request import built_with
    from sbs_deploy.backends.spec import TENSORRT
    from sbs_deploy.backends.tensorrt.runtime import engine_problem
    from sbs_deploy.bundle import make_bundle, open_bundle
    from sbs_deploy.engines.rebuild import rebuild_command
    from sbs_deploy.export.codes import load_codes
    from sbs_deploy.export.golden_file import load_golden
    from sbs_deploy.lint.run import RULE_SETS, lint_model, load_model
    from sbs_deploy.machine.hardware import Hardware
    from sbs_deploy.report.comparison import compare
    from sbs_deploy.report.ledger import make_ledger
    from sbs_deploy.report.markdown import markdown_from_ledger
    from sbs_deploy.report.page import page_from_ledger, page_from_runs
    from sbs_deploy.validate.run import validate_run
    from sbs_train.contract import rundir
    from sbs_train.contract.config import load_config
    from sbs_train.contract.documents import metrics_of, read_record
    from sbs_train.contract.placement import Trials
    from sbs_train.contract.plan import load_plan
    from sbs_train.contract.rundir import RunDir
    from sbs_train.contract.validation import Validation
    from tests.sbs_deploy.report.runs import write_bench
    from tests.sbs_deploy.whole_run import make_whole_run

    run = make_whole_run(root, images=4)
    write_bench(run)
    engine = run.engines / "model.int8.tensorrt.engine"
    engine.parent.mkdir(exist_ok=True)
    engine.write_bytes(random.Random(0).randbytes(500))
    details: dict[str, Any] = {
        "precision": "int8",
        "profile": {"opt": 1, "max": 8},
        "compute_capabilities": [],
        "settings": {"workspace_mib": 64},
        "hardware": {"gpu": "a", "compute_capability": "8.9"},
        "shapes": {"input": ["batch", 3, "h", 8]},
        "axes": {"h": [4, 8, 16]},
        "flags": ["STRONGLY_TYPED"],
        "build_seconds": 1.5,
        "quantized_layers": 3,
        "float_layers": ["conv1"],
        "legal": {"float_type": "fp16", "activations": "exact", "depthwise": "int8", "float32_layers": []},
        "placement": {"mode": "measured", "minutes": 2.0, "threads": 1, "batch": 1, "ms": 1.5, "float_layers": []},
    }
    rundir.write_manifest(
        engine, {run.model_trt.name: "1", run.plan.name: rundir.sha256_of(run.plan)}, details=details,
        versions={"tensorrt": "10.3"},
    )  # fmt: skip
    bundled = root.parent / "bundle"
    bundled.mkdir()
    make_bundle(run, bundled / "small.sbs.zip", images=4, progress=lambda line: None)

    def ledger(root: Path) -> None:
        found = make_ledger(RunDir(root))
        markdown_from_ledger(found)
        json.dumps([asdict(one) for one in (*found.stages, *found.timed)], allow_nan=False)
        content = b"".join(path.read_bytes() for path in (run.bench, run.metrics, run.plan, run.config, run.validation))
        if zlib.crc32(content) % PAGE_EVERY == 0:
            page_from_ledger(found)
            page_from_runs(compare([found]))

    def validation(root: Path) -> object:
        return read_record(RunDir(root).validation, Validation, "make it again")

    def engine_manifest(root: Path) -> object:
        path = root / engine.relative_to(run.root)
        manifest = rundir.read_manifest(path)
        built_with(manifest.details, path.name)
        here = Hardware(gpu="b", compute_capability="8.6")
        engine_problem(manifest.details, manifest.versions, "tensorrt", "10.7", here)
        return rebuild_command(path, manifest, TENSORRT, root)

    trials = run.deploy / "placement" / "int8.onnxruntime.json"
    trials.parent.mkdir()
    race = {"seconds": 1.0, "rounds_ms": {"a": [1.5, 2.0], "fp32 slim": [1.0, 1.0]}}
    answers = {"seconds": 1.0, "top1": 50.0, "agreement": 100.0}
    rundir.write_json(
        trials, {"races": {"b": race}, "profiles": {"a": {"ms": {"conv1": 0.5}}}, "answers": {"a": answers}}
    )

    def placement(root: Path) -> object:
        return read_record(root / trials.relative_to(run.root), Trials, "delete it")

    def lint(root: Path) -> object:
        return lint_model(load_model(RunDir(root).model_trt), RULE_SETS)

    def opened(root: Path) -> object:
        shutil.rmtree(root / "small", ignore_errors=True)
        return open_bundle(root / "small.sbs.zip", lambda line: None)

    def described(name: str, file: Path, changes: tuple[Corruption, ...], *readers: Reader, **more: Any) -> Format:
        below = file.relative_to(run.root).as_posix()
        return Format(name=name, root=run.root, file=below, alterations=changes, readers=readers, **more)

    def manifest_of(path: Path) -> Reader:
        return lambda root: rundir.read_manifest(path)

    text = alterations.JSON
    judged = ("deploy/validation.json*",)

    def golden(root: Path) -> object:
        return load_golden(RunDir(root).golden, load_plan(run.plan))

    def validate(root: Path) -> object:
        return validate_run(RunDir(root))

    return [
        described("config", run.config, text, lambda root: load_config(root / "config.json"), ledger),
        described("plan", run.plan, text, lambda root: load_plan(root / "plan.json"), ledger),
        described("metrics", run.metrics, text, lambda root: metrics_of(RunDir(root)), ledger),
        described("bench", run.bench, text, ledger),
        described("validation", run.validation, text, validation, ledger),
        described("engine manifest", rundir.manifest_path(engine), text, engine_manifest, ledger),
        described("placement", trials, text, placement),
        described("manifest", rundir.manifest_path(run.golden), text, manifest_of(run.golden), ledger),
        described("golden", run.golden, alterations.NPZ, golden),
        described("codes", run.codes, alterations.NPZ, lambda root: load_codes(RunDir(root).codes), ledger),
        described("codes in use", run.codes, alterations.NPZ, validate, writes=judged),
        described("golden in use", run.golden, alterations.NPZ, validate, writes=judged),
        described("onnx", run.model_trt, alterations.ONNX, lint),
        described("onnx in use", run.model_ort, alterations.ONNX, validate, writes=judged),
        Format(
            name="bundle", root=bundled, file="small.sbs.zip", alterations=alterations.BINARY, readers=(opened,),
            writes=("small/*",),
        ),
    ]  # fmt: skip


def _training(root: Path) -> list[Format]:
    from safetensors.torch import save_file

    from sbs_train.contract import rundir
    from sbs_train.contract.config import TrainConfig
    from sbs_train.contract.device import save_device, search_device
    from sbs_train.contract.documents import read_record
    from sbs_train.contract.records import Calibration
    from sbs_train.stages.checkpoint import Position
    from sbs_train.stages.weights import load_weights
    from sbs_train.sweep.directory import Settings, load_settings, row_of, save_settings
    from tests.sbs_deploy.devices import device_of
    from tests.sbs_deploy.graphs import make_run
    from tests.sbs_train.stages.parts import checkpoint_in, parts_of

    root.mkdir()
    save_device(device_of("onnxruntime"), root / "device.json")
    save_settings(Settings(targets=("60x",), config=TrainConfig()), root)
    run = make_run(root / "60x")
    metrics = rundir.read_json(run.metrics)
    budget = {"unit": "BOPs", "reduction": 60.0, "reached": True, "reachable": [16.0, 250.0]}
    rundir.write_json(run.metrics, {**metrics, "finetune": {"top1": 90.0}, "budget": budget})
    row = {"signed": True, "clips_a": [1.0, 2.0], "clips_w": [3.0, 3.0]}
    pair = [{"signed": True, "clip": 1.0}, {"signed": False, "clip": 2.0}]
    rundir.write_json(root / "calibration.json", {"layers": {"conv1": row}, "adds": [pair]})
    save_file({name: value.contiguous() for name, value in parts_of(0)["model"].state_dict().items()}, root / "w.st")
    checkpoint_in(root / "stage", 0).save(Position(epoch=1, step=2))

    def described(name: str, file: str, changes: tuple[Corruption, ...], reader: Reader) -> Format:
        return Format(name=name, root=root, file=file, alterations=changes, readers=(reader,))

    def calibration(root: Path) -> object:
        return read_record(root / "calibration.json", Calibration, "again")

    def weights(root: Path) -> None:
        load_weights(parts_of(1)["model"], root / "w.st")

    def checkpoint(root: Path) -> object:
        return checkpoint_in(root / "stage", 1).resume()

    text = alterations.JSON
    return [
        described("device", "device.json", text, lambda root: search_device(root / "device.json")),
        described("sweep settings", "settings.json", text, load_settings),
        described("sweep metrics", "60x/metrics.json", text, lambda root: row_of(root, "60x")),
        described("calibration", "calibration.json", text, calibration),
        described("safetensors", "w.st", alterations.SAFETENSORS, weights),
        described("checkpoint", "stage/checkpoints/search.pt", alterations.CHECKPOINT, checkpoint),
    ]  # fmt: skip


def _data(root: Path) -> list[Format]:
    import pickle

    from sbs_train.inputs.data import load, load_dataset
    from sbs_train.inputs.data.masks import mask_data
    from tests.sbs_train.inputs.pictures import write_folder
    from tests.sbs_train.inputs.test_data import write_idx
    from tests.sbs_train.inputs.test_data_shards import write as write_shards
    from tests.sbs_train.tasks.test_segmentation import write as write_masks

    root.mkdir()
    load.CACHE = root.parent / "cache"
    rng = np.random.default_rng(0)
    formats = []
    for kind, compress in (("idx", False), ("idx.gz", True)):
        (root / kind).mkdir()
        for prefix, count in (("train", 40), ("t10k", 10)):
            write_idx(root / kind / f"{prefix}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28)), compress)
            write_idx(root / kind / f"{prefix}-labels-idx1-ubyte", rng.integers(0, 10, count), compress)
        for file in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
            formats.append(
                Format(
                    name=f"{kind} {file.split('-')[1]}",
                    root=root / kind,
                    file=file + ".gz" * compress,
                    alterations=alterations.GZIP if compress else alterations.BINARY,
                    readers=(lambda root: load_dataset("fashion-mnist", data_dir=root),),
                )
            )
    cifar = root / "cifar"
    (cifar / "cifar-10-batches-py").mkdir(parents=True)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        rows = {"data": rng.integers(0, 256, (6, 3072), dtype=np.uint8), "labels": rng.integers(0, 10, 6).tolist()}
        (cifar / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(rows, 2))
    write_folder(root / "folder", train=10, val=2, kind="png")
    (root / "shards").mkdir()
    write_shards(root / "shards", 3)

    def images(name: str, files: str = "") -> Reader:
        def read(root: Path) -> object:
            data = load_dataset(f"{name}:{root}{files}", image_size=14, workers=0)
            return list(data.eval_batches(data.test)), list(data.train_batches(8, 0, 1))

        return read

    def masks(root: Path) -> object:
        data = mask_data("masks", root, image_size=16, workers=0)
        return [list(data.eval_batches(split, 4)) for split in ("train", "val", "test")]

    write_masks(root / "masks", count=3)
    (root / "masks" / "classes.txt").write_text("one\ntwo\nthree\n")
    return [
        *formats,
        *(
            Format(
                name=f"mask {file}", root=root / "masks", file=file, alterations=alterations.BINARY, readers=(masks,)
            )
            for file in ("val/masks/1.png", "classes.txt")
        ),
        Format(
            name="cifar", root=cifar, file="cifar-10-batches-py/data_batch_1", alterations=alterations.BINARY,
            readers=(lambda root: load_dataset("cifar10", data_dir=root),),
        ),
        Format(
            name="image", root=root / "folder", file="val/ant/000.png", alterations=alterations.BINARY,
            readers=(images("folder"),),
        ),
        Format(
            name="shards", root=root / "shards", file="part-000.tar", alterations=alterations.BINARY,
            readers=(images("wds", "/part-{000..002}.tar"),),
        ),
    ]  # fmt: skip
