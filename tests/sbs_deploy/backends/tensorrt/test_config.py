"""Settings of a build: what is refused, and the timing cache from build to build."""

from pathlib import Path
from typing import Any

import pytest

from sbs_deploy.backends.request import BatchProfile, BuilderSettings, batch_profile, check_settings
from sbs_deploy.backends.spec import ONNXRUNTIME, ONNXRUNTIME_TENSORRT, OPENVINO, TENSORRT, TENSORRT_RTX, Backend
from sbs_deploy.backends.tensorrt.config import TimingCache, apply_settings
from sbs_train.contract.errors import SbsError
from tests.fakes import FakeConfig, FakeMemory, FakeTensorRT


def test_nothing_asked_for_changes_nothing() -> None:
    trt: Any = FakeTensorRT("11.4", FakeMemory())
    config = FakeConfig()
    assert apply_settings(trt, config, BuilderSettings()) == []
    assert vars(config) == vars(FakeConfig())
    assert BuilderSettings().as_json() == {} and BuilderSettings(refit=True).as_json() == {"refit": True}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"optimization_level": 6}, "--optimization-level 6 must be between 0 and 5"),
        ({"workspace_mib": 0}, "at least 1"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], words: str) -> None:
    with pytest.raises(SbsError, match=words):
        BuilderSettings(**values)


@pytest.mark.parametrize(
    "settings",
    [
        BuilderSettings(refit=True),
        BuilderSettings(version_compatible=True),
        BuilderSettings(hardware_compatibility="same-compute-capability"),
    ],
)
def test_what_rtx_lacks_is_refused(settings: BuilderSettings) -> None:
    with pytest.raises(SbsError, match="is a setting of TensorRT that tensorrt-rtx does not have.*--backend tensorrt"):
        check_settings(settings, TENSORRT_RTX)
    check_settings(settings, TENSORRT)


def test_settings_of_tensorrt_are_no_others() -> None:
    with pytest.raises(SbsError, match="--workspace-mib is a setting of TensorRT that onnxruntime does not have"):
        check_settings(BuilderSettings(workspace_mib=64), ONNXRUNTIME)
    check_settings(BuilderSettings(), ONNXRUNTIME)
    check_settings(BuilderSettings(workspace_mib=64), TENSORRT_RTX)


def test_batch_sizes() -> None:
    assert batch_profile(TENSORRT_RTX, None, None) == BatchProfile(opt=1, max=32)
    assert batch_profile(TENSORRT, 4, 8) == BatchProfile(opt=4, max=8)
    assert batch_profile(ONNXRUNTIME, None, None) == BatchProfile()
    with pytest.raises(SbsError, match=r"--batch-opt \(64\) <= --batch-max \(32\)"):
        batch_profile(TENSORRT, 64, None)


@pytest.mark.parametrize("backend", [ONNXRUNTIME, ONNXRUNTIME_TENSORRT, OPENVINO])
def test_the_largest_batch_is_tensorrts(backend: Backend) -> None:
    with pytest.raises(SbsError, match=f"--batch-max is a setting of TensorRT; {backend.name} takes any batch size"):
        batch_profile(backend, None, 32)
    assert batch_profile(backend, 64, None).opt == 64


@pytest.mark.parametrize("start", [None, b"", b"of another version"])
def test_a_timing_cache_grows_from_build_to_build(tmp_path: Path, start: bytes | None) -> None:
    path = tmp_path / "timing.cache"
    if start is not None:
        path.write_bytes(start)
    trt: Any = FakeTensorRT("10.13", FakeMemory())
    for builds in (1, 2):
        config, cache = FakeConfig(), TimingCache(path)
        assert cache.attach(trt, config)
        cache.keep(config)
        assert path.read_bytes() == b"cache %d" % builds


def test_rtx_has_no_timing_cache(tmp_path: Path) -> None:
    trt: Any = FakeTensorRT("1.7", FakeMemory())
    trt.__name__ = "tensorrt_rtx"
    assert not TimingCache(tmp_path / "timing.cache").attach(trt, FakeConfig())
    assert not TimingCache(None).attach(trt, FakeConfig())
