"""`Search` in two processes under DistributedDataParallel."""

import json

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from sbs_train.contract.errors import SbsError
from sbs_train.stages.ranks import ranks_of
from tests.sbs_train.stages.test_in_loop import BATCH, STEPS, data, loss_of, moments, part_of, searched


def _train(rank, directory):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    # Calibrated on other inputs: those of the first process count.
    model, search = searched(calibration=[data(rank)[0]])
    model.blocks.eval()  # BatchNorm would see the parts of the ranks
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    found = None
    for step in range(STEPS):
        inputs, y, value = part_of(data(step), slice(rank, BATCH, 2))
        loss_of(wrapped(**inputs), y, value).backward()
        search.step()
        optimizer.step()
        optimizer.zero_grad()
        found = moments(search).tolist() if step == 2 else found
    plan = search.finish()
    inputs, y, value = part_of(data(), slice(rank, BATCH, 2))
    loss_of(wrapped(**inputs), y, value).backward()  # fine-tuning
    (directory / f"{rank}.json").write_text(json.dumps([plan.model_dump(), found]))
    dist.destroy_process_group()


def _fail(rank, directory):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    ranks = ranks_of(torch.device("cpu"))
    try:
        ranks.on_first(lambda: (_ for _ in ()).throw(SbsError("no calibration inputs")))
    except SbsError as error:
        (directory / f"{rank}.txt").write_text(str(error))
    dist.destroy_process_group()


@pytest.mark.slow  # two processes
def test_every_rank_of_a_users_loop_raises_what_fails_on_one(tmp_path):
    mp.spawn(_fail, (tmp_path,), nprocs=2)
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    assert first == "no calibration inputs" and "rank 0" in second


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_reach_one_plan_with_the_moments_of_one(tmp_path):
    mp.spawn(_train, (tmp_path,), nprocs=2)
    (plan, found), (other, others) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert plan == other and found == others
    model, search = searched(calibration=[data(0)[0]])
    model.blocks.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(3):
        inputs, y, value = data(step)
        loss_of(model(**inputs), y, value).backward()
        search.step()
        optimizer.step()
        optimizer.zero_grad()
    assert found == pytest.approx(moments(search).tolist(), rel=0.02, abs=1e-3 * max(found))
