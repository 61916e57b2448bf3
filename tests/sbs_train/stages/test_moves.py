"""Single moves: each changes one choice for the finer and at most one for the coarser, and stays within the limits."""

import numpy as np

from sbs_train.quant.sensitivity import Losses
from sbs_train.stages.moves import Moves
from tests.sbs_train.stages.test_choices import choices_at


def differences(one, other):
    pairs = [*zip(one.weights_S, other.weights_S, strict=True), *zip(one.inputs_S, other.inputs_S, strict=True)]
    bits = [after - before for before, after in pairs if after != before]
    return bits + [
        len(after) - len(before) for before, after in zip(one.blocks_P, other.blocks_P, strict=True) if after != before
    ]


def test_moves_fit_and_change_one_choice_up_and_at_most_one_down():
    choices = choices_at(60)
    choice = choices.uniform((4, 4))
    moves = Moves(choices, None, seed=0).around(choice)
    assert moves
    for _, to in moves:
        assert choices.fits(to)
        changed = differences(choice, to)
        assert len(changed) in (1, 2) and max(changed) > 0 and (len(changed) == 1 or min(changed) < 0)


def test_the_order_depends_on_the_seed_alone():
    choices = choices_at(60)
    choice = choices.uniform((4, 4))
    assert Moves(choices, None, 1).around(choice) == Moves(choices, None, 1).around(choice)
    assert Moves(choices, None, 1).around(choice) != Moves(choices, None, 2).around(choice)


def test_the_move_with_the_best_estimate_comes_first():
    choices = choices_at(60)
    space, choice = choices.space, choices.uniform((4, 4))
    count = len(space.searched)
    losses = Losses(
        weights_SK=np.tile([2.0, 1.0, 0.5], (count, 1)),
        inputs_SK=np.tile([2.0, 1.0, 0.5], (count, 1)),
        blocks=[np.ones(space.blocks(group)) for group in space.prunable],
    )
    losses.inputs_SK[3] = [9.0, 8.0, 0.0]  # gains much at 8 bits
    losses.weights_SK[5] = [1.0, 1.0, 1.0]  # loses nothing at 2
    (_, first), *_ = (
        move for move in Moves(choices, losses, 0).around(choice) if len(differences(choice, move[1])) == 2
    )
    assert first.inputs_S[3] == 8 and first.weights_S[5] == 2
