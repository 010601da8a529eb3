"""Contracts: the least plugin of each kind, which derives from no ready variant, goes through everything.

``tests/contract/strange`` is a stranger's folder, by docs/extending.md alone: SLiC on transformers' own trainer,
(IA)^3, a GPT-2 over bytes, a task, a reward, an evaluator and a Hydra launcher; a file and a YAML each.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.runs import Sandbox

STRANGE = Path(__file__).parent / "contract" / "strange"
OWN = ("--config-dir", "conf", "plugins=[stranger]")
SHORT = (
    "model=bytes", "task=echo", "train.steps=2", "train.batch_size=8", "train.micro_batch_size=4",
    "train.max_length=64", "train.max_completion_length=8", "train.gradient_checkpointing=false", "eval=quick",
)  # fmt: skip
KINDS = ("adapter", "algo", "evaluator", "model", "reward", "task")


@pytest.fixture
def sandbox(tmp_path: Path, cache_dir: Path) -> Sandbox:
    """The stranger's folder as a working directory."""
    shutil.copytree(STRANGE, tmp_path, dirs_exist_ok=True)
    return Sandbox(tmp_path, cache_dir)


def test_each_kind_takes_one_file_and_one_yaml():
    yamls = sorted(p.parent.name for p in (STRANGE / "conf").rglob("*.yaml"))
    files = [p for p in (STRANGE / "stranger").glob("*.py") if p.name != "__init__.py"]
    assert tuple(yamls) == KINDS and len(files) == len(KINDS)


@pytest.mark.slow
def test_a_strangers_plugins_go_through_validate_plan_a_sweep_and_the_report(sandbox):
    shown = sandbox.run("validate", *OWN, quick=False)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    tried = [line.split()[1].partition("=")[0] for line in shown.stdout.splitlines() if line.startswith("ok")]
    assert tuple(sorted(tried)) == KINDS

    plan = sandbox.run("plan", "-m", *OWN, "algo=slic", "adapter=scales,full", *SHORT, quick=False)
    assert plan.returncode == 0 and plan.stdout.count("slic-") >= 2 and "no prediction" not in plan.stdout, plan.stdout

    sweep = sandbox.run(
        "-m", *OWN, "algo=slic,grpo", "adapter=scales", "reward=short", *SHORT, "sweep=strange",
        "+evaluator@eval.evaluators.count=count", "hydra/launcher=one_by_one", quick=False,
    )  # fmt: skip
    assert sweep.returncode == 0, sweep.stdout + sweep.stderr
    assert (sweep.stdout + sweep.stderr).count("one by one: ") == 2
    held = {}
    for folder in sandbox.folders("strange"):
        metrics = sandbox.results("strange")[folder.name]["metrics"]
        assert {
            "eval/characters",
            "baseline/characters",
            "eval/true_reward",
            "memory/predicted_peak_mb",
        } <= metrics.keys()
        assert metrics["params/trainable"] == 2 * (96 + 32 + 128)  # outputs of c_attn, inputs of both c_proj
        (held[folder.name.partition("-")[0]],) = [
            e["reference"] for e in sandbox.events(folder, "worker.jsonl") if e["kind"] == "training"
        ]
    assert held == {"slic": "none", "grpo": "base"}
    report = (sandbox.cwd / "reports" / "strange" / "report.md").read_text()
    assert "slic-scales" in report and "Not alike** – reference" not in report


@pytest.mark.slow
def test_an_adapter_that_miscounts_is_refused_before_anything_trains(sandbox):
    path = sandbox.cwd / "stranger" / "scales.py"
    path.write_text(path.read_text().replace("        return count\n", "        return count + 1\n"))
    shown = sandbox.run(*OWN, "algo=slic", "adapter=scales", *SHORT, quick=False)
    assert shown.returncode == 2 and "expected_trainable() says" in shown.stderr, shown.stdout + shown.stderr
    assert not (sandbox.cwd / "outputs").exists() and "Traceback" not in shown.stderr
