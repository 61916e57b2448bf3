"""Exit codes that the command line promises."""

import pytest

from sbs_train.contract.errors import GateFailed, SbsError


def test_bad_input_exits_2_and_a_failed_gate_1() -> None:
    assert SbsError("x").exit_code == 2
    assert GateFailed("x").exit_code == 1


def test_users_may_catch_value_error() -> None:
    with pytest.raises(ValueError, match="remedy"):
        raise GateFailed("what is wrong; the remedy")
