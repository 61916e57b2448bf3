"""`Search` in loops that are not ours: what it counts, what it leaves alone, where it refuses to go on."""

import copy
import io
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sbs_train import Search, SearchConfig
from sbs_train.contract.config import TrainConfig
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import ModelSpec, Plan
from sbs_train.example import Example
from sbs_train.network.carried import network_of
from sbs_train.network.network import build_network
from sbs_train.quant.layers import sbs_layers
from sbs_train.quant.sensitivity import SAMPLES
from tests.sbs_train.devices import device_for

STEPS, BATCH = 16, 24


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return F.relu(x + self.second(F.relu(self.norm(self.first(x)))))


class TwoByTwo(nn.Module):
    """An image and five numbers in, classes and a regression out."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.numbers = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8))
        self.classes = nn.Linear(8, 4)
        self.value = nn.Linear(8, 1)

    def forward(self, image, numbers):
        features = self.blocks(F.relu(self.stem(image))).mean((2, 3)) + self.numbers(numbers)
        return {"classes": self.classes(features), "more": (self.value(features),)}


def data(seed=0, count=BATCH):
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        "image": torch.randn(count, 1, 10, 10, generator=generator),
        "numbers": torch.randn(count, 5, generator=generator),
    }
    return inputs, torch.randint(0, 4, (count,), generator=generator), torch.randn(count, generator=generator)


def loss_of(outputs, y, value):
    return F.cross_entropy(outputs["classes"], y) + F.huber_loss(outputs["more"][0][:, 0], value)


def part_of(batch, part):
    inputs, y, value = batch
    return {name: tensor[part] for name, tensor in inputs.items()}, y[part], value[part]


def searched(model=None, **changes):
    torch.manual_seed(0)
    model = TwoByTwo() if model is None else model
    inputs, *_ = data()
    options = {"target": "50x", "steps": STEPS, "calibration": [inputs], "options": SearchConfig(group_size=2)}
    return model, Search(model, {name: tensor[:3] for name, tensor in inputs.items()}, **{**options, **changes})


def train(model, search, first=0, last=STEPS, optimizer=None, called=None):
    called = model if called is None else called
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(first, last):
        inputs, y, value = data(step)
        loss_of(called(**inputs), y, value).backward()
        search.step()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def moments(search):
    losses = search._rule.sensitivity.losses()
    return np.concatenate([losses.weights_SK.ravel(), losses.inputs_SK.ravel(), *losses.blocks])


@pytest.fixture(scope="module")
def finished():
    model, search = searched()
    train(model, search)
    return model, search.finish()


def test_the_model_computes_a_plan_that_meets_the_target(finished):
    model, plan = finished
    assert isinstance(plan, Plan) and 50 <= plan.cost.reduction < 60
    layers = dict(sbs_layers(model))
    for row in plan.layers:
        assert (layers[row.name].bits_w, layers[row.name].bits_a) == (row.bits_w, row.bits_a)
    assert [one.name for one in plan.inputs] == ["image", "numbers"]
    assert [one.name for one in plan.outputs] == ["classes", "more.0"]


def test_nothing_of_the_search_is_left_in_the_model(finished):
    model, plan = finished
    for name, layer in sbs_layers(model):
        assert layer.probe_w is None and layer.probe_a is None and layer.passes is None
        group = plan.group(plan.layer(name).group_in)
        assert (layer.mask_in is not None) == (len(group.kept) < group.size)
        assert layer.mask_in is None or not layer.mask_in.requires_grad
    assert len(model._forward_pre_hooks) == 2  # the additions' and that of the clip values


def test_parameters_keep_their_names_and_values():
    plain = TwoByTwo()
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    kept = dict(plain.named_parameters())
    model, _ = searched(plain)
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in kept.items())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_parts_of_a_batch_give_the_moments_of_the_whole():
    found = []
    for parts in ([slice(0, BATCH)], [slice(0, 6), slice(6, 20), slice(20, BATCH)]):
        torch.manual_seed(0)
        model, search = searched()
        model.eval()  # BatchNorm would see the parts
        for step in range(6):
            for part in parts:
                inputs, y, value = part_of(data(step), part)
                (loss_of(model(**inputs), y, value) * len(y) / BATCH).backward()
            search.step()
        found.append(moments(search))
    np.testing.assert_allclose(*found, rtol=2e-3, atol=1e-5 * found[0].max())


def test_only_passes_that_train_are_counted():
    found = []
    for disturbed in (False, True):
        model, search = searched()
        _, y, value = data()
        for step in range(4):
            if disturbed:
                with torch.no_grad():
                    model(**data(90, 7)[0])
                model.eval()
                model(**data(91, 9)[0])  # evaluation that forgot no_grad
                model.train()
            loss = loss_of(model(**data(step)[0]), y, value)
            if disturbed:
                with torch.no_grad():
                    model(**data(92, 50)[0])  # its own teacher
            loss.backward()
            search.step()
        found.append(moments(search))
    # BatchNorm's statistics moved, which training does not read.
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_a_pass_without_a_backward_pass_is_not_counted():
    model, search = searched()
    batch, seen = data(), []
    observe = search._rule.sensitivity.observe

    def see(samples, *, probed, grad_scale):
        seen.append((samples, probed))
        observe(samples, probed=probed, grad_scale=grad_scale)

    search._rule.sensitivity.observe = see
    for _ in range(2):
        model(**batch[0])["classes"].detach()  # its own teacher, though no_grad was forgotten
        loss_of(model(**batch[0]), *batch[1:]).backward()
        search.step()
    late = model(**part_of(batch, slice(0, 10))[0])  # a gradient may still come
    loss_of(model(**batch[0]), *batch[1:]).backward()
    search.step()
    del late
    late = model(**part_of(batch, slice(0, 10))[0])
    (loss_of(model(**batch[0]), *batch[1:]) + late["classes"].sum()).backward()
    search.step()
    assert seen == [(BATCH, SAMPLES)] * 2 + [(BATCH, SAMPLES - 10), (10 + BATCH, SAMPLES)]


@pytest.mark.parametrize("factor", [1e-7, 1e5])
def test_a_factor_of_the_loss_changes_no_decision(factor):
    plans = []
    for scale in (1.0, factor):
        model, search = searched()
        for step in range(STEPS):
            inputs, y, value = data(step)
            (loss_of(model(**inputs), y, value) * scale).backward()
            search.step()
        plans.append(search.finish())
    assert plans[0] == plans[1]


def test_gradients_of_a_scaler_teach_the_same_and_those_that_overflow_nothing():
    found = []
    for scale in (1.0, 2.0**14):
        model, search = searched()
        for step in range(3):
            inputs, y, value = data(step)
            (loss_of(model(**inputs), y, value) * scale).backward()
            search.step(grad_scale=scale)
        found.append(moments(search))
    np.testing.assert_allclose(*found, rtol=1e-4)
    inputs, y, value = data(7)
    (loss_of(model(**inputs), y, value) * float("inf")).backward()
    search.step(grad_scale=2.0**15)
    assert (moments(search) == found[1]).all() and search._rule.sensitivity.count == 3


def test_amp_with_a_scaler():
    model, search = searched()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(STEPS):
        inputs, y, value = data(step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model(**inputs), y, value)
        scaler.scale(loss).backward()
        search.step(grad_scale=scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert search.finish().cost.reduction >= 50


def test_clip_values_stay_positive_and_learn_on_after_the_end(finished):
    model = copy.deepcopy(finished[0])
    layers = dict(sbs_layers(model))
    with torch.no_grad():
        layers["stem"].clip_a.fill_(-1)
        layers["blocks.0.first"].clip_w.fill_(-1)
    inputs, y, value = data()
    with torch.no_grad():
        model(**inputs)
    assert layers["stem"].clip_a == -1  # evaluation changes nothing
    loss_of(model(**inputs), y, value).backward()
    assert layers["stem"].clip_a > 0 and layers["blocks.0.first"].clip_w > 0
    assert layers["stem"].clip_a.grad is not None


def test_copies_of_the_model_go_their_own_way(finished):
    model, search = searched()
    optimizer = train(model, search, 0, 5)
    copied = copy.deepcopy(model)
    written = io.BytesIO()
    torch.save(model, written)
    train(model, search, 5, optimizer=optimizer)
    inputs, *_ = data()
    plan = search.finish()
    assert plan == finished[1]
    for other in (copied, torch.load(io.BytesIO(written.getvalue()), weights_only=False), copy.deepcopy(model)):
        network = network_of(other)
        assert network.model is other and network is not search.network
        assert all(network.layers[name] is layer for name, layer in sbs_layers(other))
        other(**inputs)["classes"].sum().backward()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    assert network_of(averaged).model is averaged.module


def test_what_its_owner_froze_stays_frozen():
    model = TwoByTwo()
    model.blocks[0].requires_grad_(False)
    model.blocks.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    model, search = searched(model)
    assert {name: module.training for name, module in model.named_modules()} == modes
    own = {name for name, _ in TwoByTwo().named_parameters()}
    assert {name for name, p in model.named_parameters() if not p.requires_grad and name in own} == frozen
    before = model.blocks[0].first.weight.clone()
    train(model, search)
    search.finish()
    assert torch.equal(model.blocks[0].first.weight, before)
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_a_model_in_eval_mode_can_be_searched():
    model, search = searched(TwoByTwo().eval())
    train(model, search)
    assert search.finish().cost.reduction >= 50 and not model.training


@pytest.mark.parametrize(("mode", "target"), [("prune", "1.2x"), ("quantize", "100x")])
def test_modes(mode, target):
    model, search = searched(mode=mode, target=target)
    train(model, search)
    plan = search.finish()
    assert plan.cost.reduction >= float(target[:-1])
    assert {row.quantized for row in plan.layers} == {mode == "quantize"}


def test_kept_layers_are_left_alone():
    keep = {"blocks.0.*": "float", "blocks.1.first": 4, "numbers.0": 8}
    model, search = searched(keep=keep, target="2x")
    train(model, search)
    plan, described = search.finish(), search.describe()
    for name in ("blocks.0.first", "blocks.0.second"):
        assert not plan.layer(name).quantized
    assert (plan.layer("blocks.1.first").bits_w, plan.layer("blocks.1.first").bits_a) == (4, 4)
    assert (plan.layer("numbers.0").bits_w, plan.layer("numbers.0").bits_a) == (8, 8)
    for name in ("blocks.0.first", "blocks.1.first", "numbers.0"):
        assert len(plan.group(plan.layer(name).group_out).kept) == 8
    reasons = {row.name: row.float_reason for row in described.layers}
    assert all(bool(reasons[name]) == name.startswith("blocks.0.") for name in reasons)
    assert all(name in str(described) for name in reasons)


@pytest.mark.parametrize("stop", [3, 9, STEPS])
def test_an_interrupted_search_ends_like_one_that_was_not(finished, stop, tmp_path):
    model, search = searched()
    optimizer = train(model, search, 0, stop)
    if stop == STEPS:
        search.finish()
    states = {"model": model.state_dict(), "search": search.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(states, tmp_path / "state.pt")
    states = torch.load(tmp_path / "state.pt")
    # Calibrated anew, on other inputs: the state decides.
    model, search = searched(calibration=[{name: tensor.abs() for name, tensor in data(5)[0].items()}])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for part, name in ((model, "model"), (search, "search"), (optimizer, "optimizer")):
        part.load_state_dict(states[name])
    train(model, search, stop, STEPS, optimizer)
    assert search.finish() == finished[1]
    for name, value in finished[0].state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_fixed_bits_stay_where_a_resumed_calibration_found_other_signs():
    keep = {"numbers.0": 4}
    state = searched(keep=keep)[1].state_dict()
    others = [{name: tensor.abs() for name, tensor in data(5)[0].items()}]
    model, search = searched(keep=keep, calibration=others)
    assert search.state_dict()["signed"]["numbers.0"] != state["signed"]["numbers.0"]
    search.load_state_dict(state)
    layer = dict(sbs_layers(model))["numbers.0"]
    assert (layer.bits_w, layer.bits_a) == (4, 4)


def test_a_finished_search_takes_no_state():
    model, search = searched()
    state = search.state_dict()
    train(model, search)
    search.finish()
    with pytest.raises(SbsError, match="finish"):
        search.load_state_dict(state)


def test_errors_name_arguments_of_python():
    with pytest.raises(SbsError, match=r"options\.bits_weights"):
        searched(options=SearchConfig(bits_weights=(1, 8)))


def test_a_state_of_another_search_is_refused():
    _, search = searched()
    state = search.state_dict()
    with pytest.raises(SbsError, match="steps"):
        searched(steps=STEPS + 1)[1].load_state_dict(state)
    with pytest.raises(SbsError, match="another search"):
        searched(mode="prune", target="1.2x")[1].load_state_dict(state)


@pytest.mark.parametrize("inside", [False, True])
def test_torch_compile_of_the_model(finished, inside):
    model, search = searched()
    if inside:
        model.compile(backend="eager")
    called = model if inside else torch.compile(model, backend="eager")
    train(model, search, called=called)
    assert search.finish() == finished[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 3}, "steps"),
        ({"target": "900x"}, "out of reach"),
        ({"target": "1K"}, "out of reach"),
        ({"target": "1.2ms"}, "device.json"),
        ({"target": "none"}, "30x"),
        ({"calibration": []}, "calibration"),
        ({"calibration": [{"image": torch.full((2, 1, 10, 10), torch.nan), "numbers": torch.zeros(2, 5)}]}, "finite"),
        ({"calibration": [(data()[0]["image"], data()[1])]}, "without labels|example_inputs"),
        ({"keep": {"block.*": "float"}}, "blocks.0"),
        ({"keep": {"stem": 5}}, "float, 2, 4, 8"),
        ({"keep": {"stem": "int8"}}, "number of bits"),
        ({"options": SearchConfig(metric="error")}, "metric"),
        ({"options": SearchConfig(bits_weights=(4, 2))}, "ascending"),
    ],
)
def test_wrong_arguments_are_refused_and_leave_the_model_as_it_was(changes, words):
    model = TwoByTwo()
    before = set(model.state_dict())
    with pytest.raises(SbsError, match=words):
        searched(model, **changes)
    assert set(model.state_dict()) == before and not dict(sbs_layers(model)) and not model._forward_pre_hooks
    searched(model)  # and works with right ones


def test_models_that_cannot_be_searched_are_refused():
    model, _ = searched()
    with pytest.raises(SbsError, match="searched before"):
        searched(model)
    with pytest.raises(SbsError, match="afterwards"):
        searched(torch.compile(TwoByTwo(), backend="eager"))
    with pytest.raises(SbsError, match="half precision"):
        searched(TwoByTwo().half())
    with pytest.raises(SbsError, match="was not searched"):
        network_of(TwoByTwo())


def test_steps_out_of_order_are_refused():
    model, search = searched()
    with pytest.raises(SbsError, match=r"backward"):
        search.step()
    inputs, y, value = data()
    model(**inputs)
    with pytest.raises(SbsError, match=r"backward"):
        search.step()
    with pytest.raises(SbsError, match="0 of 16 steps"):
        search.finish()
    train(model, search)
    loss_of(model(**inputs), y, value).backward()
    with pytest.raises(SbsError, match="16 times"):
        search.step()
    search.finish()
    with pytest.raises(SbsError, match="after finish"):
        search.step()


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), None])
def test_a_scale_that_no_loss_has_is_refused(scale):
    model, search = searched()
    loss_of(model(**data()[0]), *data()[1:]).backward()
    with pytest.raises(SbsError, match="grad_scale"):
        search.step(grad_scale=scale)


@pytest.mark.parametrize("change", [lambda state: {}, lambda state: None, lambda state: {**state, "step": STEPS + 1}])
def test_a_state_of_something_else_is_refused(change):
    _, search = searched()
    with pytest.raises(SbsError, match="state"):
        search.load_state_dict(change(search.state_dict()))


def test_a_search_that_diverged_has_no_plan():
    model, search = searched()
    train(model, search)
    with torch.no_grad():
        model.blocks[0].first.weight.fill_(float("nan"))
    with pytest.raises(SbsError, match=r"blocks\.0\.first"):
        search.finish()


def test_calls_around_the_model_are_refused():
    model, search = searched()
    model.blocks(torch.randn(2, 8, 4, 4)).sum().backward()
    with pytest.raises(SbsError, match="the model itself"):
        search.step()


def test_a_loss_that_does_not_depend_on_a_layer_is_refused():
    model, search = searched()
    with pytest.raises(SbsError, match='keep={"classes": "float"}'):
        for step in range(STEPS):
            model(**data(step)[0])["more"][0].square().mean().backward()
            search.step()


def test_progress_goes_to_logging(caplog):
    with caplog.at_level(logging.INFO, "sbs_train"):
        model, search = searched()
        train(model, search)
    assert any("of 16" in record.message for record in caplog.records)


class Tokens(nn.Module):
    """Sixteen tokens a sample, which a linear layer reads in one row of all samples."""

    def __init__(self, flat):
        super().__init__()
        self.flat = flat
        self.read = nn.Linear(6, 16)
        self.mix = nn.Linear(16, 16)
        self.write = nn.Linear(16, 3)

    def forward(self, x_NTC):
        y = F.relu(self.read(x_NTC))
        y = self.mix(y.flatten(0, 1)).view(*y.shape) if self.flat else self.mix(y)
        return self.write(F.relu(y).mean(1))


def test_tokens_in_rows_are_estimated_like_tokens_of_samples(monkeypatch):
    monkeypatch.setattr("sbs_train.quant.sensitivity.MOMENTUM", 0.999)
    generator, found = torch.Generator().manual_seed(0), []
    x, t = torch.randn(300, 8, 5, 6, generator=generator), torch.randn(300, 8, 3, generator=generator)
    for flat in (False, True):
        torch.manual_seed(0)
        model = Tokens(flat)
        search = Search(model, x[0], target="20x", steps=300, calibration=[x[0]], mode="quantize")
        assert search.network.layers["mix"].per_sample != flat
        for x_NTC, t_NC in zip(x, t, strict=True):
            (model(x_NTC) - t_NC).square().mean().backward()
            search._rule.sensitivity.observe(8)
            search._rule.sensitivity.zero_grad()
        found.append(search._rule.sensitivity.losses().inputs_SK)
    np.testing.assert_allclose(*found, rtol=0.4)


class Small(nn.Module):
    """Four convolutions of an image."""

    def __init__(self):
        super().__init__()
        convs = [nn.Conv2d(3 if not i else 16, 16, 3, padding=1) for i in range(4)]
        self.body = nn.Sequential(*(layer for conv in convs for layer in (conv, nn.ReLU())))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def test_milliseconds_of_a_device(tmp_path):
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    measured = build_network(TrainConfig(), Small(), Example.of(x), ModelSpec(name="small"))
    path = tmp_path / "device.json"
    path.write_text(device_for(measured, float_factor=2.0, switch_us=1.0).model_dump_json())
    model = Small()
    search = Search(model, x, target="3x", cost=path, steps=STEPS, calibration=[x], keep={"body.4": 8})
    for _ in range(STEPS):
        model(x).square().mean().backward()
        search.step()
    plan = search.finish()
    assert search._space.cost.unit == "ms" and search._rule.reduction >= 3
    assert (plan.layer("body.4").bits_w, plan.layer("body.4").kept_out) == (8, 16)
    assert any(len(group.kept) < group.size for group in plan.groups)
    for name, layer in sbs_layers(model):
        assert layer.clip_w.requires_grad == plan.layer(name).quantized
    with pytest.raises(SbsError, match="device.json"):
        Search(Small(), x, target="3ms", steps=STEPS, calibration=[x])
    with pytest.raises(SbsError, match="out of reach"):
        Search(Small(), x, target="99x", cost=path, steps=STEPS, calibration=[x])


def test_remedies_keep_the_flags_of_commands(tmp_path):
    x = torch.randn(8, 3, 8, 8)
    with pytest.raises(SbsError, match="`sbs-deploy profile-device .*--out"):
        Search(Small(), x, target="5ms", cost=tmp_path / "none.json", steps=STEPS, calibration=[x])


def test_gradients_that_are_never_finite_end_the_search_early():
    model, x = Small(), torch.randn(4, 3, 8, 8)
    search = Search(model, x, target="8x", steps=1000, calibration=[x])
    with pytest.raises(SbsError, match="50 steps taught nothing"):
        for _ in range(60):
            (model(x).sum() * float("nan")).backward()
            search.step()
