"""golden.npz of networks with several inputs and outputs, and what cannot be compared."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sbs_deploy.export import golden
from sbs_deploy.export.codes import load_arrays, save_arrays
from sbs_deploy.export.golden import Batch, golden_arrays
from sbs_deploy.export.golden_file import GoldenArrays, load_golden
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import Plan
from sbs_train.example import Example
from sbs_train.network.network import Network
from tests.sbs_deploy.named_run import Mixed, mixed_example, planned


@pytest.fixture(scope="module")
def mixed() -> tuple[Network, Plan]:
    torch.manual_seed(0)
    return planned(Mixed(), mixed_example())


def test_samples_of_all_batches_with_what_the_network_makes_of_them(
    mixed: tuple[Network, Plan], tmp_path: Path
) -> None:
    network, plan = mixed
    batches = [(mixed_example(5), None), (mixed_example(3), None)]
    golden = golden_arrays(network, plan, batches)
    golden.save(tmp_path / "golden.npz")
    found = load_golden(tmp_path / "golden.npz", plan)
    assert found.samples == 8 and found.labels is None and found.tapped == 4
    for name in ("image", "word"):
        whole = np.concatenate([example.kwargs[name].numpy() for example, _ in batches])
        np.testing.assert_array_equal(found.inputs[name], whole)
    with torch.no_grad():
        expected = [example.run(network.model) for example, _ in batches]
        exact = mixed_example(5).to(torch.float64).run(network.model.double())
        network.model.float()
    for name, array in found.outputs.items():
        np.testing.assert_array_equal(array, np.concatenate([one[name].numpy() for one in expected]))
    np.testing.assert_allclose(found.exact["number"][:5], exact["number"].numpy())
    assert found.exact["number"].dtype == np.float64 and found.exact["which"].dtype == np.int64
    assert found.plain.keys() == found.plain32.keys() == found.outputs.keys()
    assert 0 < np.abs(found.plain["map"] - found.plain32["map"]).max() < 1e-5
    assert list(found.taps) == ["stem", "body", "wide", "head"]
    few = found.first(3)
    assert few.samples == 3 and all(len(one) == 3 for one in (*few.outputs.values(), *few.exact.values()))


def test_large_samples_are_few(mixed: tuple[Network, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of `Mixed` has 776 bytes in and 2 maps of 4,096 bytes and 13 more out."""
    monkeypatch.setattr(golden, "BYTES", 16 * (776 + 8192 + 13))
    batches = [(mixed_example(9), None) for _ in range(4)]
    found = golden_arrays(*mixed, batches)
    assert found.samples == 16
    assert (found.samples_in(found.exact), found.samples_in(found.plain)) == (8, 5)
    monkeypatch.setattr(golden, "BYTES", (4 + 16) * 8 * 8 * 4)  # stem keeps 4 of 8 channels
    found = golden_arrays(*mixed, batches)
    assert (found.samples, found.tapped, list(found.taps)) == (4, 1, ["stem", "body"])
    found.save(tmp_path / "golden.npz")
    assert load_golden(tmp_path / "golden.npz", mixed[1]).samples == 4


def test_labels_are_kept_where_every_batch_has_them(mixed: tuple[Network, Plan]) -> None:
    network, plan = mixed
    labelled: list[Batch] = [(mixed_example(n), torch.arange(n)) for n in (3, 2)]
    assert golden_arrays(network, plan, labelled).labels.tolist() == [0, 1, 2, 0, 1]  # type: ignore[union-attr]
    for other in (None, torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2)):
        assert golden_arrays(network, plan, [*labelled, (mixed_example(2), other)]).labels is None


class Odd(nn.Module):
    """Outputs that are not one for each sample."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.fc, self.kind = nn.Linear(6, 6), kind
        self.register_buffer("table", torch.arange(10.0).view(5, 2))

    def forward(self, x: Tensor, prior: Tensor) -> dict[str, Tensor]:
        y = self.fc(x) * prior
        more = {
            "tokens": lambda: y.view(-1, 2),
            "anchors": lambda: self.table * 1,
            "total": lambda: y.sum(),
            "infinite": lambda: y / (y * 0),
            "chosen": lambda: y[y[:, 0] > 0] if len(y) > 2 else y,
        }
        return {"y": y, self.kind: more[self.kind]()}


def odd(kind: str, *batches: Batch) -> GoldenArrays:
    torch.manual_seed(0)
    network, plan = planned(Odd(kind), odd_example(2))
    return golden_arrays(network, plan, batches or [(odd_example(6), None), (odd_example(4), None)])


def odd_example(samples: int, prior: float = 1.0, features: int = 6) -> Example:
    x = torch.randn(samples, features, generator=torch.Generator().manual_seed(samples))
    return Example.of((x, torch.full((1, features), prior)))


def test_tokens_of_a_sample_and_constants() -> None:
    golden = odd("tokens")
    assert golden.inputs["x"].shape == (10, 6) and golden.inputs["prior"].shape == (1, 6)
    assert golden.outputs["tokens"].shape == (30, 2)
    few = golden.first(4)
    assert few.outputs["tokens"].shape == (12, 2) and few.inputs["prior"].shape == (1, 6)
    assert golden.samples_in(golden.plain) == 10
    anchors = odd("anchors")
    assert anchors.outputs["anchors"].shape == anchors.first(2).outputs["anchors"].shape == (5, 2)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("chosen", "size depends on the values, as behind a non-maximum suppression"),
        ("total", "output total has no axis of samples and depends on the samples"),
        ("infinite", "output infinite is not finite"),
    ],
)
def test_outputs_that_cannot_be_compared(kind: str, words: str) -> None:
    with pytest.raises(SbsError, match=words) as error:
        odd(kind)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([(odd_example(3, features=5), None)], "does not run on the golden samples"),
        ([(Example.of(torch.zeros(2, 6)), None)], "does not run on the golden samples"),
        ([(odd_example(3), None), (odd_example(3, 2.0), None)], "prior in several sizes, or with several values"),
    ],
)
def test_samples_that_the_network_does_not_take(batches: list[Batch], words: str) -> None:
    with pytest.raises(SbsError, match=words):
        odd("tokens", *batches)


def test_an_input_with_an_axis_0_of_its_own() -> None:
    network, plan = planned(Odd("tokens"), odd_example(2))
    x, prior = plan.inputs
    plan = plan.model_copy(update={"inputs": [x, prior.model_copy(update={"shape": ["boxes", 6]})]})
    with pytest.raises(SbsError, match="input prior has an axis 0 of its own, boxes"):
        golden_arrays(network, plan, [(odd_example(6), None)])


def test_no_samples() -> None:
    network, plan = planned(Odd("tokens"), odd_example(2))
    with pytest.raises(SbsError, match="no golden samples"):
        golden_arrays(network, plan, [])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input/word": None}, "lacks input/word"),
        ({"output/which": None}, "lacks output/which"),
        ({"input/word": np.zeros(8, np.float32)}, "input/word"),
        ({"input/word": np.zeros(7, np.int64)}, "input/word"),
        ({"output/map": np.zeros((8, 16, 8), np.float32)}, "output/map"),
        ({"output/number": np.full(8, np.nan, np.float32)}, "output/number"),
        ({"exact/number": np.zeros(9)}, "exact/number"),
        ({"float32/number": np.zeros(3, np.float32)}, "float32/number"),
        ({"labels": np.zeros(7, np.int64)}, "labels"),
        ({"other": np.zeros(3)}, "nothing is called 'other'"),
    ],
)
def test_damaged_files(mixed: tuple[Network, Plan], tmp_path: Path, change: dict[str, np.ndarray], words: str) -> None:
    path = tmp_path / "golden.npz"
    golden_arrays(*mixed, [(mixed_example(8), None)]).save(path)
    arrays = {**load_arrays(path), **change}
    save_arrays({name: array for name, array in arrays.items() if array is not None}, path)
    with pytest.raises(SbsError, match=words):
        load_golden(path, mixed[1])
