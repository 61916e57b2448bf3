"""Two processes that train together on the CPU: they decide alike, and as one process with the whole batch would."""

import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sbs_train.contract.plan import Plan
from sbs_train.stages.profile import evaluate_run
from tests.sbs_train.stages import ranked

# Of losses around 2.3. Float32 sums in another order differ by 1e-7; once in a while a quantizer rounds that to another
# level, and training goes apart from there: of four seeds three stay within 2e-6 to the end, one ends at 1e-3.
FLOAT_TOLERANCE, QUANTIZED_TOLERANCE = 1e-5, 1e-3


def losses_of(run):
    """Training and validation losses of every epoch, by curve."""
    log = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    names = [tag for tag in log.Tags()["scalars"] if tag.endswith("loss")]
    return {name: [event.value for event in log.Scalars(name)] for name in names}


def check_losses(run, other):
    found, expected = losses_of(run), losses_of(other)
    assert len(found) == 6 and found.keys() == expected.keys()
    for name in found:
        atol = FLOAT_TOLERANCE if name.startswith("pretrain") else QUANTIZED_TOLERANCE
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=atol, err_msg=name)


def metrics_of(run):
    return json.loads((run / "metrics.json").read_text())


def choices_of(plan):
    layers = {row.name: (row.bits_w, row.bits_a, row.kept_in, row.kept_out) for row in plan.layers}
    return layers, {group.id: group.kept for group in plan.groups}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return ranked.train(tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A directory in which two processes first tried what ranks can do, then trained."""
    directory = tmp_path_factory.mktemp("runs")
    result = ranked.torchrun("try", directory)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("pretrain 2/2") == 1  # rank 0 talks, the other is silent
    return directory


def test_every_rank_gets_the_same_from_what_they_do_together(two):
    first, second = (json.loads((two / f"ranks-{rank}.json").read_text()) for rank in (0, 1))
    for name in ("sum", "average", "shared", "on_first"):
        assert first[name] == second[name]
    assert first["sum"] == [2, 1] and first["average"] == [[0.5] * 3, [[1.0]]]
    assert first["on_first"] == ["made on", 0]
    assert (first["each"], second["each"]) == (0, 1)


def test_a_failure_ends_all_ranks_and_is_told_once(two):
    first, second = (json.loads((two / f"ranks-{rank}.json").read_text()) for rank in (0, 1))
    for name in ("refused on 0", "refused on 1", "refused on all"):
        assert first[name][0] == "SbsError" and first[name][1].startswith("no such thing")
        assert second[name] == ["SystemExit", "0"]
    assert "(rank 1 on " in first["refused on 1"][1] and "rank" not in first["refused on all"][1]


def test_two_ranks_find_the_same_plan_and_one_writes_it(two):
    plans = [(two / f"plan-{rank}.json").read_text() for rank in (0, 1)]
    assert plans[0] == plans[1]
    run = two / "two"
    assert Plan.model_validate_json((run / "plan.json").read_text()) == Plan.model_validate_json(plans[0])
    assert len(list(run.glob("events.*"))) == 1 and not list(run.rglob("*.tmp"))


def test_two_ranks_train_as_one_process_with_the_whole_batch(one, two):
    plan = Plan.model_validate_json((two / "plan-0.json").read_text())
    assert choices_of(plan) == choices_of(one.plan)
    assert len({row.bits_w * row.bits_a for row in plan.layers[1:-1]}) > 1  # a choice was made
    check_losses(two / "two", one.run.root)
    metrics, alone = metrics_of(two / "two"), metrics_of(one.run.root)
    for stage in ("fp32", "search", "finetune"):
        assert metrics[stage]["images"] == 360
        assert metrics[stage]["loss"] == pytest.approx(alone[stage]["loss"], abs=QUANTIZED_TOLERANCE)
    rows = zip(metrics["search"]["history"], alone["search"]["history"], strict=True)
    for ours, theirs in rows:
        assert (ours["bits_w"], ours["bits_a"], ours["kept"]) == (theirs["bits_w"], theirs["bits_a"], theirs["kept"])


@pytest.mark.parametrize("parts", [2, 8])
def test_micro_batches_add_up_to_the_batch(one, tmp_path, parts):
    outcome = ranked.train(tmp_path / "parts", accumulate=parts)
    assert choices_of(outcome.plan) == choices_of(one.plan)
    check_losses(tmp_path / "parts", one.run.root)


def test_bfloat16_trains_and_is_evaluated_in_float32(one, tmp_path):
    outcome = ranked.train(tmp_path / "short", precision="bf16")
    assert outcome.plan.cost.reduction >= 50
    for found, expected in zip(losses_of(tmp_path / "short").values(), losses_of(one.run.root).values(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.1)
    again = evaluate_run(outcome.run, "finetune")
    assert again["loss"] == pytest.approx(metrics_of(outcome.run.root)["finetune"]["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["killed", "refused"])
def test_a_lost_rank_ends_the_run_and_resuming_finishes_it(two, tmp_path, kind):
    settings = json.dumps({"checkpoint_minutes": 1e-6})
    result = ranked.torchrun(kind, tmp_path, settings)
    assert result.returncode != 0
    assert kind == "killed" or "this rank has had enough" in result.stderr
    assert (tmp_path / "two" / "checkpoints" / "search.pt").is_file()
    result = ranked.torchrun("go on", tmp_path, settings)
    assert result.returncode == 0 and "search: resuming after step" in result.stderr, result.stderr
    for name in ("plan.json", "weights.safetensors", "checkpoints/search.plan.json"):
        assert (tmp_path / "two" / name).read_bytes() == (two / "two" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["loss", "error"])
def test_ranks_agree_where_they_see_different_statistics(tmp_path, metric):
    search = {"epochs": 4, "steps_per_epoch": 6, "group_size": 2, "metric": metric}
    result = ranked.torchrun("batchnorm", tmp_path, json.dumps({"model": "resnet20", "search": search}))
    assert result.returncode == 0, result.stderr
    plans = [(tmp_path / f"plan-{rank}.json").read_text() for rank in (0, 1)]
    assert plans[0] == plans[1]
