"""Which GPUs a trial takes on a host that has several."""

from __future__ import annotations

import pytest

from harness.runner.gpus import taken
from harness.runner.ranks import gpu_of
from tests.telemetry.driver import GB, Driver, Gpu


@pytest.fixture
def host(monkeypatch) -> Driver:
    """Four GPUs, of which the second has most memory free."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return Driver(
        Gpu("GPU-a", used=9 * GB), Gpu("GPU-b", used=1 * GB), Gpu("GPU-c", used=3 * GB), Gpu("GPU-d", used=5 * GB)
    )


def mask(found) -> str | None:
    return found.environment.get("CUDA_VISIBLE_DEVICES")


def test_a_trial_takes_one_gpu_and_says_which(host, tmp_path):
    with taken(1, "cuda", host, tmp_path) as found:
        assert mask(found) == "GPU-b"
        assert found.said == "takes 1 of 4 visible GPUs: GPU-b"


def test_trials_at_once_take_different_ones_and_share_only_where_none_is_left(host, tmp_path):
    with taken(2, "cuda", host, tmp_path) as first, taken(1, "cuda", host, tmp_path) as second:
        assert (mask(first), mask(second)) == ("GPU-b,GPU-c", "GPU-d")
        with taken(2, "cuda", host, tmp_path) as third:
            assert mask(third) == "GPU-a,GPU-b"
            assert third.said is not None and "shared with other trials, 1 of them" in third.said
    with taken(1, "cuda", host, tmp_path) as again:
        assert mask(again) == "GPU-b", "a GPU is let go of with its trial"


def test_what_a_scheduler_gave_is_kept(host, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    with taken(1, "cuda", host, tmp_path) as found:
        assert found.environment == {} and found.said is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    with taken(2, "cuda", host, tmp_path) as found:
        assert found.environment == {}
    with taken(1, "cuda", host, tmp_path) as found:
        assert mask(found) == "GPU-d", "of two that it may use, the one with more memory free"


def test_without_a_choice_nothing_is_set(host, tmp_path):
    with taken(1, "cpu", host, tmp_path) as found:
        assert found.environment == {}
    with taken(4, "cuda", host, tmp_path) as found:
        assert found.environment == {}
    with taken(1, "cuda", Driver(Gpu("GPU-a")), tmp_path) as found:
        assert found.environment == {}
    host.failing = "Driver/library version mismatch"
    with taken(1, "cuda", host, tmp_path) as found:
        assert found.environment == {}


def test_gpus_whose_numbers_are_not_known_are_left_to_cuda(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    mixed = Driver(Gpu("GPU-a", model="H200"), Gpu("GPU-b", model="T400"))
    with taken(1, "cuda", mixed, tmp_path) as found:
        assert mask(found) == "GPU-a", "a UUID names one for sure"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    with taken(1, "cuda", mixed, tmp_path) as found:
        assert found.environment == {}
    sliced = Driver(Gpu("GPU-a"), Gpu("GPU-b"))
    sliced.gpus[0].mig = 1
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with taken(1, "cuda", sliced, tmp_path) as found:
        assert found.environment == {}


def test_each_rank_has_its_own_entry_of_the_mask():
    assert [gpu_of(k, "GPU-b, GPU-c") for k in range(2)] == ["GPU-b", "GPU-c"]
    assert [gpu_of(k, None) for k in range(2)] == ["0", "1"]
