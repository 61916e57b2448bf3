"""Shared by all tests: hypothesis profiles, and a said reason where the GPU is missing."""

import os

# Before torch is imported. The networks of the tests are too small for threads, which only wait for one another
# where other processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest

# Derandomized in CI, so that a red run is red for everyone; a developer's run looks further each time.
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is none, with the reason."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and (reason := _why_no_gpu()):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


def _why_no_gpu() -> str:
    try:
        import torch
    except ImportError:
        return "needs a GPU, and torch to find it; torch is not installed"
    return "" if torch.cuda.is_available() else "needs an NVIDIA GPU; torch sees none"
