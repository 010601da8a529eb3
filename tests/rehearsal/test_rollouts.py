"""Rollouts in chunks: what they take is predicted, and falls with the chunk."""

from __future__ import annotations

import pytest

from tests.rehearsal.test_rehearsal import rehearsed, setup_of

LONG = ("algo=grpo", "adapter=lora", "train.micro_batch_size=1", "train.max_length=160",
        "train.max_completion_length=128")  # fmt: skip


@pytest.mark.slow
def test_a_rollout_takes_what_is_predicted_for_its_chunks_and_less_the_smaller_they_are():
    peaks = []
    for chunk in (8, 16, 64):
        setup = setup_of(*LONG, "train.batch_size=64", f"train.rollout_batch={chunk}")
        predicted, real = (rehearsed(setup, fake=fake).peaks()["rollout"].total for fake in (True, False))
        assert predicted == pytest.approx(real, rel=0.05), chunk
        peaks.append(real)
    assert peaks[0] < peaks[1] < 0.8 * peaks[2], peaks
