"""Who a process of a trial is, and how many passes it takes of a batch that all of them share."""

from __future__ import annotations

import pytest

from harness.base.world import World
from harness.trial.job import Job


def test_a_trial_is_one_process_unless_said_otherwise():
    alone = World()
    assert (alone.rank, alone.size, alone.leads) == (0, 1, True)
    assert alone.accumulation(32, 8) == 4


def test_processes_share_a_batch_so_that_it_keeps_its_size():
    assert World(1, 4).accumulation(32, 4) == 2
    for batch, micro in ((32, 5), (8, 4)):
        with pytest.raises(ValueError, match="no multiple of 4 x"):
            World(0, 4).accumulation(batch, micro)


def test_a_rank_that_is_not_there_is_refused():
    for rank, size in ((1, 1), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="processes"):
            World(rank, size)


def test_each_process_writes_a_journal_of_its_own_and_the_leader_the_one_that_is_followed():
    names = [Job("f", {}, "c", world=World(rank, 2)).journal for rank in range(2)]
    assert names == ["worker.jsonl", "worker.1.jsonl"]
