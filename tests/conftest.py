"""Shared fixtures: an offline world, and a small base model that tests train once per session."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "CUDA_VISIBLE_DEVICES": "",
    }
)
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores, and torch threads that wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"

SMALL = ("model.steps=12", "model.batch_size=16", "model.layers=2", "model.hidden=64", "model.intermediate=128")
"""A base that says nothing sensible but is made in a second."""

QUICK = (
    *SMALL,
    "task.pairs=64",
    "task.eval_pairs=24",
    "task.eval_prompts=12",
    "train.steps=3",
    "train.batch_size=8",
    "eval.evaluators.lm_eval=null",
    "runner.predict=false",  # takes longer than such a trial
)
"""Overrides under which a whole trial takes about two seconds."""


LONGEST = (
    "test_verdicts",
    "test_runs",
    "test_readme",
    "test_resume",
    "test_worker_units",
    "test_reference",
    "test_own_model",
    "test_gate",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest begin first, so that no worker is left with one of them at the end."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def compose() -> Any:
    """``compose("algo=kto", ...)`` -> the resolved configuration, with a fixed sweep name."""
    from harness.config.compose import compose as compose_now
    from harness.config.compose import hydra_config

    def call(*overrides: str) -> dict[str, Any]:
        with hydra_config():
            return compose_now(["sweep=test", *overrides])

    return call


@pytest.fixture
def assemble(compose: Any) -> Any:
    """``assemble("algo=kto", ...)`` -> a built and checked Setup."""
    from harness.trial.assemble import assemble as assemble_now

    return lambda *overrides: assemble_now(compose(*overrides))
