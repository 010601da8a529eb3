"""A user's own model and data, and what is said when they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs import Sandbox
from tests.toys import build_model, conversational_rows, write_jsonl

SHORT = (
    "train.steps=3",
    "train.batch_size=4",
    "train.micro_batch_size=2",
    "train.max_length=64",
    "train.max_completion_length=8",
)


@pytest.fixture
def sandbox(tmp_path: Path, cache_dir: Path) -> Sandbox:
    write_jsonl(tmp_path / "prefs.jsonl", conversational_rows(60))
    return Sandbox(tmp_path, cache_dir)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["qwen2", "gpt_neox"])
def test_grpo_without_a_reward_is_refused_before_anything_runs_and_dpo_runs_alone(
    sandbox: Sandbox, architecture: str
) -> None:
    build_model(sandbox.cwd / "model", architecture, chat=architecture == "qwen2")
    sweep = ("-m", "algo=dpo,grpo", "model=hf", "model.path=model", "task=preferences", "task.path=prefs.jsonl", *SHORT)

    refused = sandbox.call(*sweep, "sweep=own")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "reward" in refused.stderr and "fix:" in refused.stderr and "algo=dpo" in refused.stderr
    assert not list((sandbox.cwd / "outputs").glob("own/*/worker.jsonl")), "nothing ran"

    done = sandbox.run(*sweep, "runner.skip_invalid=true", "sweep=own", quick=False)
    assert done.returncode == 0, done.stderr
    (result,) = sandbox.results("own").values()
    assert result["outcome"] == "finished" and result["config"]["algo"]["name"] == "dpo"
    assert 0 <= result["metrics"]["eval/preference_accuracy"] <= 1
    assert result["config"]["train"]["preset"] == "standard" and result["config"]["train"]["learning_rate"] < 1e-4


@pytest.mark.slow
def test_bad_models_and_data_are_named_with_a_fix(sandbox: Sandbox) -> None:
    build_model(sandbox.cwd / "padless", "gpt_neox", pad=False)
    build_model(sandbox.cwd / "short", "qwen2", context=32)
    (sandbox.cwd / "one.jsonl").write_text(
        '{"prompt": "a b", "completion": "c", "label": true}\n{"prompt": "d e", "completion": "f", "label": true}\n'
        '{"prompt": "g", "completion": "h", "label": true}\n'
    )
    (sandbox.cwd / "broken.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", \n')
    own = ("model=hf", "task=preferences", "task.path=prefs.jsonl")
    cases = {
        "model.pad_token": (*own, "model.path=padless"),
        "this data cannot make the embedded base model": ("task=preferences", "task.path=prefs.jsonl"),
        "model=hf model.path=./short": ("task=preferences", "task.path=prefs.jsonl", "model=./short"),
        "did you mean report?": ("repot",),
        "leave -m out": ("-m", "algo=dpo,kto", "--cfg", "job"),
        "model.path": (*own, "model.path=./absent"),
        "task.path": ("model=hf", "model.path=short", "task=preferences", "task.path=absent.jsonl"),
        "labels: desirable only": (
            "algo=kto",
            "task=preferences",
            "task.path=one.jsonl",
            "model=hf",
            "model.path=short",
        ),
        "broken.jsonl": ("task=preferences", "task.path=broken.jsonl", "model=hf", "model.path=short"),
        "rank": ("rank=0",),
        "train.micro_batch_size": ("algo=kto", "train.micro_batch_size=1"),
        "algo": ("algo=nothing",),
        "train.steps": ("train.steps=many",),
        "train.stepz": ("train.stepz=3",),
    }
    for expected, overrides in cases.items():
        assert_refused(sandbox, expected, *overrides)


@pytest.mark.slow  # each waits for the imports of a checking process
def test_what_only_the_model_tells_is_named_with_a_fix(sandbox: Sandbox) -> None:
    build_model(sandbox.cwd / "padless", "gpt_neox", pad=False)
    build_model(sandbox.cwd / "short", "qwen2", context=32)
    own = ("model=hf", "task=preferences", "task.path=prefs.jsonl")
    assert_refused(sandbox, "train.max_length", *own, "model.path=short", "train.max_length=64")
    padded = ("model.path=padless", "model.pad_token='<|end|>'", "train.max_length=64")
    assert_refused(sandbox, "adapter.targets", *own, *padded, "adapter.targets=[nowhere]")


def assert_refused(sandbox: Sandbox, expected: str, *overrides: str) -> None:
    done = sandbox.call(*overrides)
    assert done.returncode == 2, (overrides, done.returncode, done.stderr[-2000:])
    assert expected in done.stderr and "fix:" in done.stderr, (overrides, done.stderr[-2000:])
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    assert not list((sandbox.cwd / "outputs").glob("*/*/worker.jsonl"))
