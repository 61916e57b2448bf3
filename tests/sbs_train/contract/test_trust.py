"""Nothing that a run names runs unless the user says so."""

from pathlib import Path

import pytest

from sbs_train.contract.errors import SbsError
from sbs_train.contract.trust import require_host_code, require_model, require_task, trusting

CONFIG = Path("run/config.json")


@pytest.mark.parametrize("model", ["resnet20", "torchvision:resnet18", "timm:resnet18"])
def test_a_name_of_a_library_is_no_code(model: str) -> None:
    require_model(model, CONFIG)


@pytest.mark.parametrize("model", ["net.py:make", "/tmp/net.py:make", "../net.py:make", "a:b.py:make"])
def test_code_needs_the_users_word(model: str) -> None:
    with pytest.raises(SbsError, match=r"names .*\.py.*--trust.*--model"):
        require_model(model, CONFIG)
    with trusting(everything=True):
        require_model(model, CONFIG)
    with trusting(model=model):
        require_model(model, CONFIG)
    with pytest.raises(SbsError, match="--trust"):
        require_model(model, CONFIG)


def test_another_model_is_not_the_one_that_was_named() -> None:
    for named in ("net.py:other", "other.py:make", "resnet20"):
        with trusting(model=named), pytest.raises(SbsError, match="was made with"):
            require_model("net.py:make", CONFIG)


def test_the_same_file_by_another_path_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with trusting(model="net.py:make"):
        require_model(f"{tmp_path}/net.py:make", CONFIG)


def test_an_engine_with_host_code_needs_trust_in_everything() -> None:
    with pytest.raises(SbsError, match=r"model\.engine.*--trust"):
        require_host_code(Path("model.engine"))
    with trusting(model="net.py:make"), pytest.raises(SbsError):
        require_host_code(Path("model.engine"))
    with trusting(everything=True):
        require_host_code(Path("model.engine"))


def test_the_users_word_on_the_model_is_none_on_the_task() -> None:
    with trusting(model="net.py:make"), pytest.raises(SbsError, match="--task task.py:make"):
        require_task("task.py:make", CONFIG)
    with trusting(task="task.py:other"), pytest.raises(SbsError, match="was made with --task"):
        require_task("task.py:make", CONFIG)
    with trusting(task="task.py:make"):
        require_task("task.py:make", CONFIG)
    require_task("classification", CONFIG)
