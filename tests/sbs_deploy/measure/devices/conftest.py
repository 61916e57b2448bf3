"""A machine whose times are a formula, for tests that ask for one."""

import pytest

from tests.sbs_deploy.measure.devices.formula import Formula


@pytest.fixture
def formula(monkeypatch: pytest.MonkeyPatch) -> Formula:
    return Formula().install(monkeypatch)
