"""Export of a searched model that no name builds, to engines that answer like it."""

import copy
import dataclasses
import os

import numpy as np
import pytest
import torch
from torch import nn

import sbs_deploy
from sbs_train import Search
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import load_plan
from tests.sbs_train.stages.test_in_loop import TwoByTwo, data, loss_of, searched, train


@pytest.fixture(scope="module")
def trained():
    model, search = searched()
    optimizer = train(model, search)
    plan = search.finish()
    for step in range(4):  # fine-tuning moves weights and clip values
        inputs, y, value = data(step)
        loss_of(model(**inputs), y, value).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, plan


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    batches = [data(step)[0] for step in range(3)]
    return sbs_deploy.export(*trained, out=tmp_path_factory.mktemp("runs") / "mine", golden=batches)


def test_the_run_holds_the_model_of_now(trained, run):
    model, plan = trained
    written = load_plan(run.plan)
    assert [row.bits_w for row in written.layers] == [row.bits_w for row in plan.layers]
    assert [row.clip_a for row in written.layers] != [row.clip_a for row in plan.layers]
    assert written.ranges and written.adds[0].low is not None
    with np.load(run.golden) as golden:
        inputs = {name: torch.from_numpy(golden[f"input/{name}"]) for name in ("image", "numbers")}
        with torch.no_grad():
            expected = copy.deepcopy(model).eval()(**inputs)
        # The file's biases lie on the grid of the accumulators.
        for name, tensor in (("classes", expected["classes"]), ("more.0", expected["more"][0])):
            assert np.abs(golden[f"output/{name}"] - tensor.numpy()).max() < 0.05 * np.abs(tensor.numpy()).max()


def test_the_model_does_not_change(trained, run, tmp_path):
    model, plan = trained
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training = {name: module.training for name, module in model.named_modules()}
    sbs_deploy.export(model, plan, out=tmp_path / "again", golden=[data()[0]])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: module.training for name, module in model.named_modules()} == training
    inputs, y, value = data()
    loss_of(model(**inputs), y, value).backward()  # and trains on


def test_a_plan_of_another_search_is_refused(trained, tmp_path):
    model, plan = trained
    index, row = next((i, row) for i, row in enumerate(plan.layers) if row.quantized)
    layers = [*plan.layers]
    layers[index] = row.model_copy(update={"bits_w": 2 if row.bits_w == 4 else 4})
    with pytest.raises(SbsError, match="other bits or channels"):
        sbs_deploy.export(model, plan.model_copy(update={"layers": layers}), out=tmp_path, golden=[data()[0]])


def test_it_becomes_a_validated_engine_that_is_benched_and_reported(run):
    assert sbs_deploy.validate(run).passed
    built = sbs_deploy.build(str(run.root), backend="onnxruntime", placement="plan")
    inputs, *_ = data(1)
    with np.load(run.golden) as golden, sbs_deploy.load(built.path) as engine:
        outputs = engine.run({name: tensor.numpy() for name, tensor in inputs.items()})
        assert outputs.keys() == {"classes", "more.0"}
        for name, found in outputs.items():
            expected = golden[f"output/{name}"][len(found) : 2 * len(found)]
            assert np.abs(found - expected).mean() < 0.1 * np.abs(expected).max()
    from sbs_deploy.measure.protocol import Protocol

    rows = sbs_deploy.bench(run, batch=[1], protocol=Protocol(warmup_ms=1, rounds=2))
    assert rows and sbs_deploy.report(run).is_file()
    assert not [one for one in sbs_deploy.lint(run.model_ort) if one.rule.severity == "error"]


def test_a_bundle_goes_to_a_device(run, tmp_path):
    sbs_deploy.bundle(run, tmp_path / "mine.sbs.zip", images=20)
    assert sbs_deploy.validate(tmp_path / "mine.sbs.zip").passed


@pytest.mark.slow  # a training
def test_copies_and_wrappers_are_exported_too(trained, tmp_path):
    model, plan = trained
    averaged = torch.optim.swa_utils.AveragedModel(model)
    compiled = torch.compile(model, backend="eager")
    for number, one in enumerate((averaged, compiled, copy.deepcopy(model))):
        found = sbs_deploy.export(one, plan, out=tmp_path / str(number), golden=[data()[0]])
        assert load_plan(found.plan).cost == plan.cost


def test_golden_samples_are_written_anew(trained, tmp_path):
    for count in (5, 9):
        run = sbs_deploy.export(*trained, out=tmp_path / "mine", golden=[data(count=count)[0]])
        with np.load(run.golden) as golden:
            assert len(golden["input/image"]) == count


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.last(self.body(x))


def test_axes_of_open_size(tmp_path):
    model, x = Wide(), torch.randn(4, 3, 16, 20)
    search = Search(model, x, target="16x", steps=8, calibration=[x])
    for _ in range(8):
        model(x).square().mean().backward()
        search.step()
    axes = {"x": {0: "batch", 2: "height", 3: "width"}}
    run = sbs_deploy.export(model, search.finish(), out=tmp_path / "wide", golden=[x], dynamic=axes)
    assert load_plan(run.plan).inputs[0].shape == ["batch", 3, "height", "width"]
    built = sbs_deploy.build(run, backend="onnxruntime", placement="plan")
    with sbs_deploy.load(built.path) as engine:
        (output,) = engine.run({"x": np.zeros((1, 3, 32, 24), np.float32)}).values()
    assert output.shape == (1, 2, 13, 9)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"golden": []}, "golden is empty"),
        ({"golden": [data()[0]["image"]]}, "golden"),
        ({"golden": [{**data()[0], "image": torch.zeros(2, 3, 10, 10)}]}, "golden"),
        ({"dynamic": {"picture": {0: "batch"}}}, "dynamic"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(trained, tmp_path, changes, words):
    with pytest.raises(SbsError, match=words):
        sbs_deploy.export(*trained, out=tmp_path / "no", **{"golden": [data()[0]], **changes})
    assert not os.listdir(tmp_path)


def test_models_that_were_not_searched_are_refused(trained, tmp_path):
    with pytest.raises(SbsError, match="was not searched"):
        sbs_deploy.export(TwoByTwo(), trained[1], out=tmp_path / "no", golden=[data()[0]])


@pytest.mark.slow
def test_a_run_of_compress_is_exported_in_its_place(tmp_path):
    from tests.sbs_train.stages.test_compress import Brightness
    from tests.sbs_train.stages.test_compress import run as compressed

    done, task = compressed(tmp_path / "run"), Brightness()
    before = (done.run.plan.read_bytes(), done.run.weights.read_bytes())
    golden = [task.inputs(batch) for batch in task.train_batches(1)]
    with pytest.raises(SbsError, match=r"sbs_deploy\.export"):
        sbs_deploy.build(done, backend="onnxruntime", placement="plan")
    run = sbs_deploy.export(done.model, done.plan, out=done.run.root, golden=golden)
    assert (run.plan.read_bytes(), run.weights.read_bytes()) == before
    assert sbs_deploy.validate(run).passed
    with pytest.raises(SbsError, match="another one"):
        sbs_deploy.export(done.model, done.plan.model_copy(update={"ranges": []}), out=run.root, golden=golden)
    more = copy.deepcopy(done.model)
    with torch.no_grad():
        next(more.parameters()).mul_(1.1)
    with pytest.raises(SbsError, match="weights"):
        sbs_deploy.export(more, done.plan, out=run.root, golden=golden)
    compressed(tmp_path / "run")  # and skips all its stages
    assert (run.plan.read_bytes(), run.weights.read_bytes()) == before


def test_keyword_arguments_come_in_any_order(tmp_path):
    """Both inputs have one shape, so that no engine would notice inputs that changed places."""

    class Difference(nn.Module):
        def __init__(self):
            super().__init__()
            self.plus, self.minus = nn.Linear(4, 8), nn.Linear(4, 8)

        def forward(self, plus, minus):
            return self.plus(plus) - self.minus(minus)

    torch.manual_seed(0)
    model, inputs = Difference(), {"minus": torch.randn(16, 4), "plus": torch.randn(16, 4)}
    search = Search(model, inputs, target="4x", steps=8, calibration=[inputs])
    for _ in range(8):
        model(**inputs).square().mean().backward()
        search.step()
    run = sbs_deploy.export(model, search.finish(), out=tmp_path / "run", golden=[inputs])
    assert sbs_deploy.validate(run).passed
    with sbs_deploy.load(sbs_deploy.build(run, backend="onnxruntime", placement="plan").path) as engine:
        found = engine.run({name: x.numpy() for name, x in inputs.items()})["output"]
    expected = model.eval()(**inputs).detach().numpy()
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


@dataclasses.dataclass
class Found:
    boxes: torch.Tensor
    more: list
    note: str


class Odd(nn.Module):
    """What no exporter knows: a dataclass, text, None, and an output that is a constant."""

    def __init__(self, fixed=False):
        super().__init__()
        self.fixed = fixed
        self.read, self.write = nn.Linear(6, 16), nn.Linear(16, 4)
        self.start = nn.Parameter(torch.ones(1, 6))

    def forward(self, x):
        start = self.start.expand(len(x) if self.fixed else x.shape[0], -1)
        y = self.write(torch.relu(self.read(x + start)))
        return Found(boxes=y, more=[y * 2, {"half": y / 2}, None, 3], note="text"), torch.arange(4.0)


def odd(fixed=False):
    torch.manual_seed(0)
    model, x = Odd(fixed), torch.randn(8, 6)
    search = Search(model, x, target="16x", steps=8, calibration=[x])
    for _ in range(8):
        model(x)[0].boxes.square().mean().backward()
        search.step()
    return model, search.finish(), x


def test_outputs_that_the_exporter_does_not_know(tmp_path):
    model, plan, x = odd()
    run = sbs_deploy.export(model, plan, out=tmp_path / "run", golden=[x])
    with sbs_deploy.load(sbs_deploy.build(run, placement="plan", legalise="exact")) as engine:
        found = engine.run({"x": x[:3].numpy()})
    wanted = model.eval()(x[:3])
    assert list(found) == ["output.0.boxes", "output.0.more.0", "output.0.more.1.half", "output.1"]
    y = wanted[0].boxes.detach().numpy()
    for name, expected in zip(found, (y, 2 * y, y / 2, np.arange(4)), strict=True):
        assert np.abs(found[name] - expected).max() <= 0.03 * np.abs(expected).max()
    assert "forward" not in vars(model)


def test_a_batch_that_the_graph_fixes_is_said(tmp_path):
    model, plan, x = odd(fixed=True)
    with pytest.raises(SbsError, match="axis 0 of input x"):
        sbs_deploy.export(model, plan, out=tmp_path / "run", golden=[x])
    assert not (tmp_path / "run").exists()
    sbs_deploy.export(model, plan, out=tmp_path / "run", golden=[x], dynamic={"x": {}})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("plan", None),
        ("golden", 5),
        ("golden", [torch.zeros(0, 6)]),
        ("golden", [torch.full((2, 6), torch.inf)]),
        ("golden", [[torch.zeros(2, 6)]]),
        ("golden", torch.zeros(2, 6)),
        ("calibration", 5),
        ("calibration", []),
        ("dynamic", ["x"]),
        ("dynamic", {"x": ["batch"]}),
        ("dynamic", {"x": {0: "a b"}}),
        ("dynamic", {"x": {0: "batch", 1: "features"}}),
    ],
)
def test_arguments_of_another_kind_are_refused(tmp_path, name, value):
    model, plan, x = odd()
    given = {"plan": plan, "golden": [x], "out": tmp_path / "run"}
    with pytest.raises(SbsError):
        sbs_deploy.export(model, **{**given, name: value})


class Tied(nn.Module):
    """Linear layers over tokens, two of which share a weight, and one of which runs twice."""

    def __init__(self):
        super().__init__()
        self.read, self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.second.weight = self.first.weight

    def forward(self, x):
        y = torch.relu(self.first(torch.relu(self.read(x))))
        return self.second(torch.relu(self.first(y)))


def test_weights_that_linear_layers_over_tokens_share(tmp_path):
    torch.manual_seed(0)
    model, x = Tied(), torch.randn(4, 5, 6)
    search = Search(model, x, target="16x", steps=8, calibration=[x])
    for _ in range(8):
        model(x).square().mean().backward()
        search.step()
    run = sbs_deploy.export(model, search.finish(), out=tmp_path / "run", golden=[x])
    assert sbs_deploy.validate(run).passed
