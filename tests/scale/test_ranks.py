"""One trial on several processes: the recipe stays what it is, and one that fails ends all of them."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import UserErrors
from harness.config.compose import compose, hydra_config
from harness.store.checkpoints import SEAL
from harness.store.journal import read
from harness.trial.assemble import Setup, assemble
from harness.trial.identify import training_config
from tests.runs import Sandbox, wait_for

ALIKE = (
    "train/loss",
    "train/reward",
    "train/response_tokens",
    "train/ended_by_eos",
    "train/value_loss",
    "train/critic_grad_norm",
    "train/kl_coefficient",
    "train/grad_norm",
    "train/learning_rate",
    "train/tokens",
    "train/prompts",
    "train/replay_loss",
)


PIECES = ("parallel.processes=2", "parallel.strategy=fsdp2")
UNLIKE = ("budget/seconds", "budget/reference_rows")
"""The second of two trials finds the reference's scores in the cache."""


def setup_of(*overrides: str) -> Setup:
    with hydra_config():
        return assemble(compose(overrides))


def refused(*overrides: str) -> list[str]:
    with pytest.raises(UserErrors) as caught:
        setup_of(*overrides)
    return [str(e) for e in caught.value.errors]


# -- what is asked for ---------------------------------------------------------------------------------


def test_the_batch_is_split_and_not_multiplied():
    alone, together = (setup_of("algo=dpo", f"parallel.processes={n}") for n in (1, 4))
    assert alone.train.batch_size == together.train.batch_size
    assert together.train.micro_batch_size == (alone.train.batch_size or 0) / 4
    assert setup_of("algo=kto", "parallel.processes=4").train.micro_batch_size == alone.train.batch_size


def test_processes_are_part_of_what_was_trained_unless_there_is_one():
    assert "parallel" not in training_config(setup_of("algo=dpo"))
    assert training_config(setup_of("algo=dpo", "parallel.processes=2"))["parallel"]["processes"] == 2
    base = setup_of("algo=none", "parallel.processes=2")
    assert base.parallel.processes == 1 and "parallel" in base.unused


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("algo=dpo", "train.batch_size=64", "parallel.processes=3"), "parallel.processes=3: must divide"),
        (("algo=dpo", "train.batch_size=64", "train.micro_batch_size=64", "parallel.processes=2"), "micro_batch_size"),
        (("algo=kto", "train.batch_size=64", "train.micro_batch_size=1", "parallel.processes=2"), "micro_batch_size"),
        (("algo=dpo", "algo.loss=aot", "parallel.processes=2"), "aot sorts"),
        (("algo=sft", "algo.packing=true", "parallel.processes=2"), "algo.packing"),
        (("algo=dpo", "parallel.processes=0"), "parallel.processes=0"),
        (("algo=grpo", *PIECES), "samples from the policy"),
        (("algo=dpo", *PIECES, "eval.at=[0.5]"), "eval.at"),
        (("algo=dpo", *PIECES, "adapter=pissa"), "changes the base"),
        (("algo=dpo", *PIECES, "adapter=qlora", "adapter.bits=8"), "adapter.bits=8"),
        (("algo=dpo", *PIECES, "train.optimizer=paged_adamw_8bit"), "train.optimizer"),
        (("algo=dpo", "parallel.strategy=zero"), "parallel.strategy"),
    ],
)
def test_what_cannot_be_split_is_refused_with_the_fix(overrides, words):
    told = refused(*overrides)
    assert any(words in line and "fix" in line for line in told), told


# -- the same recipe -----------------------------------------------------------------------------------


@pytest.fixture
def sandbox(tmp_path: Path, cache_dir: Path) -> Sandbox:
    return Sandbox(tmp_path, cache_dir)


def told(sandbox: Sandbox, folder: Path, kind: str) -> list[dict[str, Any]]:
    return [e for e in sandbox.events(folder, "worker.jsonl") if e["kind"] == kind]


def processes(folder: Path) -> int:
    return json.loads((folder / "trial.json").read_text())["config"].get("parallel", {}).get("processes", 1)


def by_recipe(sandbox: Sandbox, sweep: str) -> dict[str, dict[int, Path]]:
    found: dict[str, dict[int, Path]] = {}
    for folder in sandbox.folders(sweep):
        found.setdefault(folder.name.rpartition("-")[0], {})[processes(folder)] = folder
    return found


def assert_alike(sandbox: Sandbox, alone: Path, together: Path) -> None:
    one, two = (told(sandbox, folder, "series") for folder in (alone, together))
    assert [e["step"] for e in one] == [e["step"] for e in two] and len(one) > 1
    for a, b in zip(one, two, strict=True):
        for name in ALIKE:
            if name in a["values"]:
                assert b["values"][name] == pytest.approx(a["values"][name], abs=1e-5), (together.name, name)
    counted = [
        {
            k: v
            for e in told(sandbox, f, "metrics")
            for k, v in e["values"].items()
            if k.startswith(("budget", "params"))
        }
        for f in (alone, together)
    ]
    assert {k: v for k, v in counted[0].items() if k not in UNLIKE} == {
        k: v for k, v in counted[1].items() if k not in UNLIKE
    }


SPLIT = ("train.batch_size=16", "train.micro_batch_size=4", "train.logging_steps=1", "parallel.processes=1,2")


@pytest.mark.slow
@pytest.mark.parametrize(
    "sweep",
    [
        ("algo=sft,dpo,kto", "adapter=full,lora,qlora"),
        ("algo=orpo,simpo,cpo,ipo", "adapter=lora"),
        ("algo=dpo", "algo.loss={sigmoid:1,sft:0.5}", "train.replay.share=0.25"),
        ("algo=dpo,sft", "train.steps=null", "train.budget.tokens=2000"),
        ("algo=sft", "algo.anchor=0.1", "adapter=full,lora"),
        ("algo=grpo,rloo,online_dpo", "adapter=full,lora"),
        ("algo=ppo", "adapter=full,lora,qlora", "algo.whiten_rewards=true", "algo.kl_target=2"),
        ("algo=ppo", "algo.stop_at_kl=0.001", "train.steps=null", "train.budget.prompts=96"),
    ],
    ids=["adapters", "losses", "replay", "tokens", "anchor", "online", "ppo", "stopping"],
)
def test_two_processes_train_what_one_does(sandbox, sweep):
    done = sandbox.run("-m", *sweep, *SPLIT, "sweep=ranks", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    recipes = by_recipe(sandbox, "ranks")
    assert recipes and all(set(found) == {1, 2} for found in recipes.values())
    for found in recipes.values():
        assert_alike(sandbox, found[1], found[2])


@pytest.mark.slow
@pytest.mark.parametrize(
    "sweep",
    [
        ("algo=sft,dpo,kto", "adapter=full,lora,qlora"),
        ("algo=orpo,simpo,cpo,ipo", "adapter=full,lora"),
        ("algo=dpo", "train.steps=null", "train.budget.tokens=2000", "train.replay.share=0.25"),
        ("algo=sft", "algo.anchor=0.1", "adapter=full,lora"),
        ("algo=dpo", "algo.share_reference=false", "adapter=full,lora"),
    ],
    ids=["adapters", "losses", "tokens", "anchor", "reference"],
)
def test_a_policy_in_pieces_trains_to_what_one_process_trains(sandbox, sweep):
    done = sandbox.run("-m", *sweep, *SPLIT, "parallel.strategy=fsdp2", "sweep=pieces", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    recipes = by_recipe(sandbox, "pieces")
    assert recipes and all(set(found) == {1, 2} for found in recipes.values())
    for found in recipes.values():
        assert_alike(sandbox, found[1], found[2])
        metrics = [result(found[n])["metrics"] for n in (1, 2)]
        for name in ("eval/preference_accuracy", "eval/logratio_margin", "eval/true_reward", "params/changed"):
            if name in metrics[0]:
                assert metrics[1][name] == pytest.approx(metrics[0][name], abs=1e-4), (found[2].name, name)
        kept = [{p.name for p in (found[n] / "artifacts" / "model").iterdir()} for n in (1, 2)]
        assert kept[0] == kept[1]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_a_policy_in_pieces_goes_on_from_its_checkpoint(sandbox, adapter):
    whole = (*SPLIT[:3], *PIECES, "algo=dpo", f"adapter={adapter}", "train.steps=24", "train.checkpoint_steps=8")
    assert sandbox.run(*whole, "sweep=at-once").returncode == 0
    process = sandbox.start(*whole, "sweep=halved")
    folder = wait_for(lambda: sandbox.folders("halved"), what="a trial")[0]
    wait_for(lambda: (folder / "checkpoints" / "checkpoint-8" / SEAL).exists(), what="a checkpoint")
    process.send_signal(signal.SIGINT)
    ended(process, 60)
    done = sandbox.run(*whole, "sweep=halved")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continues from its last checkpoint" in done.stderr
    (first,) = sandbox.folders("at-once")
    last = [told(sandbox, f, "series")[-1]["values"] for f in (first, folder)]
    assert last[1]["train/loss"] == pytest.approx(last[0]["train/loss"], abs=1e-5)


@pytest.mark.slow
def test_the_trained_policy_is_judged_kept_and_followed_on_the_way_as_one_process_does(sandbox):
    done = sandbox.run("-m", "algo=dpo", *SPLIT, "eval.at=[0.5]", "train.keep=best", "sweep=judged")
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = by_recipe(sandbox, "judged").values()
    metrics = [json.loads((found[n] / "result.json").read_text())["metrics"] for n in (1, 2)]
    for name in ("eval/preference_accuracy", "eval/logratio_margin", "eval/true_reward"):
        assert metrics[1][name] == pytest.approx(metrics[0][name], abs=1e-4)
    points = [[e["share"] for e in told(sandbox, found[n], "point")] for n in (1, 2)]
    assert points[0] == points[1] == [0.0, 0.5, 1.0]
    each = [metrics[1][f"memory/rank_{k}_peak_mb"] for k in (0, 1)]
    assert metrics[1]["memory/peak_mb"] == max(each) and min(each) > 20
    assert max(each) <= metrics[1]["memory/all_ranks_peak_mb"] <= sum(each) + 200  # the agent beside them
    assert "memory/all_ranks_peak_mb" not in metrics[0]
    assert (found[2] / "artifacts" / "model" / "adapter_config.json").is_file()
    assert not list(found[2].glob("**/.*-*")), "nothing half-written is left"
    again = ("train.keep=best", "sweep=judged", "eval.evaluators.true_reward.samples=2", "runner.preflight=true")
    done = sandbox.run("-m", "algo=dpo", *SPLIT, "eval.at=[0.5]", *again)
    assert done.returncode == 0 and done.stderr.count("evaluates without training") == 2, done.stdout + done.stderr


@pytest.mark.slow
def test_a_preflight_is_one_process(sandbox):
    done = sandbox.run(
        "algo=dpo", "train.batch_size=16", "parallel.processes=2", "runner.preflight=true", "sweep=first"
    )
    assert done.returncode == 0, done.stdout + done.stderr


# -- faults --------------------------------------------------------------------------------------------

LONG = ("algo=dpo", "train.steps=100000", "train.batch_size=16", "parallel.processes=2")


def ranks_of(folder: Path, timeout: float = 120) -> list[int]:
    """Process ids of both ranks, once they train."""
    end = time.time() + timeout
    while time.time() < end:
        second = folder / "worker.1.jsonl"
        if second.exists() and '"series"' in second.read_text():
            events = [read(folder / name) for name in ("worker.jsonl", "worker.1.jsonl")]
            return [next(e.data["pid"] for e in found if e.kind == "rank") for found in events]
        time.sleep(0.2)
    raise AssertionError("the ranks did not come to train")


def started(sandbox: Sandbox, sweep: str, *overrides: str) -> tuple[Any, Path]:
    process = sandbox.start(*LONG, *overrides, f"sweep={sweep}")
    end = time.time() + 120
    while time.time() < end:
        if folders := sandbox.folders(sweep):
            return process, folders[0]
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.2)
    raise AssertionError("no trial was started")


def gone(pid: int) -> bool:
    """Whether a process has ended, waited for or not."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def ended(process: Any, seconds: float) -> int:
    """Its exit code; its pipe is read to the end."""
    process.communicate(timeout=seconds)
    return process.returncode


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_others_and_is_named(sandbox, victim):
    process, folder = started(sandbox, "killed")
    ranks = ranks_of(folder)
    os.kill(ranks[victim], signal.SIGKILL)
    assert ended(process, 60) == 1
    found = result(folder)
    assert found["outcome"] == "failed" and f"rank {victim} of 2 was killed by signal 9" in found["reason"]
    assert all(gone(pid) for pid in ranks)


FAULTY = """
import os
from transformers import TrainerCallback
from harness.algorithms.dpo import DPO

class Second(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if os.environ["RANK"] == "1" and state.global_step == 2:
            raise ValueError("the second of them cannot go on")

class Faulty(DPO):
    name = "faulty"

    def trainer(self, job):
        made = super().trainer(job)
        made.trainer.add_callback(Second())
        return made
"""


@pytest.mark.slow
def test_what_one_process_raises_is_the_reason_of_the_trial(sandbox):
    (sandbox.cwd / "faulty.py").write_text(FAULTY)
    here = os.pathsep.join([".", os.environ.get("PYTHONPATH", "")])
    cold = str(sandbox.cwd / "cold")  # the leader trains the base by itself
    overrides = ("algo._target_=faulty.Faulty", "plugins=[faulty]", "sweep=raised")
    done = sandbox.run(*LONG, *overrides, PYTHONPATH=here, HARNESS_CACHE=cold)
    assert done.returncode == 1
    (folder,) = sandbox.folders("raised")
    found = result(folder)
    assert found["outcome"] == "failed"
    said, where = "ValueError: the second of them cannot go on", "on_step_end() failed at faulty.py:"
    assert said in found["reason"] and where in found["reason"] and found["reason"].endswith("(in rank 1 of 2)")


@pytest.mark.slow
def test_a_process_that_hangs_ends_with_the_time_limit_and_is_named(sandbox):
    process, folder = started(sandbox, "hung", "runner.timeout_s=45")
    ranks = ranks_of(folder)
    os.kill(ranks[1], signal.SIGSTOP)
    assert ended(process, 90) == 1
    found = result(folder)
    assert found["outcome"] == "timeout" and "rank 1 of 2" in found["reason"]
    assert all(gone(pid) for pid in ranks)


@pytest.mark.slow
def test_ctrl_c_ends_all_of_them(sandbox):
    process, folder = started(sandbox, "stopped")
    ranks = ranks_of(folder)
    process.send_signal(signal.SIGINT)
    assert ended(process, 60) == 1
    assert result(folder)["outcome"] == "interrupted"
    assert all(gone(pid) for pid in ranks)
