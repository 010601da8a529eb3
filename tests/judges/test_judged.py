"""The evaluator that asks a judge: on toys, and a trial whose judge is a server with planted biases."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.evaluators.judged import Judged
from harness.judges.base import Longer, shown
from harness.judges.served import Served
from harness.tasks.arithmetic import Arithmetic
from harness.tasks.base import TaskData
from harness.trial.behaviour import context_on_toys, fixture_rows
from tests.judges.server import Planted, serving
from tests.runs import Sandbox

TASK = Arithmetic(pairs=8, eval_pairs=6, eval_prompts=6)


def test_a_judge_by_length_is_seen_through():
    rows = fixture_rows(TASK.load(), "test")
    found = Judged().evaluate(context_on_toys(TASK, rows, chat=False))
    metrics = found.metrics
    assert metrics["judge_longer"] == 1.0 and metrics["judge_consistency"] == 1.0 and metrics["judge_unreadable"] == 0
    assert {"judge_win_rate", "judge_agreement", "judge_first", "judge_asked"} <= metrics.keys()
    assert found.examples["judged"]["example"] and "labels_longer" in metrics


def test_before_training_a_judge_is_held_against_labels_alone():
    context = context_on_toys(TASK, fixture_rows(TASK.load(), "test"), chat=False)
    found = Judged().evaluate(replace(context, before_training=None))
    assert "judge_win_rate" not in found.metrics and "no other model" in found.absent["judge_win_rate"]
    assert found.metrics["judge_asked"] == 2 * len(context.data.eval_pairs["test"])


def test_what_cannot_be_read_counts_for_nobody(tmp_path):
    context = context_on_toys(TASK, fixture_rows(TASK.load(), "test"), chat=False)
    with serving(Planted(unreadable=1.0)) as url:
        judge = Served(url=url, model="m", price_in=2.0, price_out=8.0)
        found = Judged(judge=judge).evaluate(replace(context, cache=tmp_path))
        again = Judged(judge=judge).evaluate(replace(context, cache=tmp_path))
    assert found.metrics["judge_unreadable"] == 1.0 and "judge_win_rate" not in found.metrics
    assert any("cannot be read" in note for note in found.notes)
    assert found.metrics["judge_cost"] > 0 and again.metrics["judge_asked"] == again.metrics["judge_cost"] == 0


def test_a_judge_needs_something_to_compare_and_its_answers_make_its_identity():
    assert "neither" in str(Judged().not_applicable(TASK, TaskData()))
    assert Judged(judge=Served(model="a")).contents() != Judged(judge=Served(model="b")).contents()
    assert Judged(judge=Served(model="a", url="x")).contents() == Judged(judge=Served(model="a", url="y")).contents()
    assert isinstance(Judged(judge=Served(model="a")).on_fixture(None, "")[0].judge, Longer)  # type: ignore[arg-type]


def test_a_judge_that_cannot_be_had_is_refused_before_anything_trains(tmp_path):
    chosen = ("+evaluator@eval.evaluators.judged=judged", "judge@eval.evaluators.judged.judge=local",
              "eval.evaluators.judged.judge.path=./nothing")  # fmt: skip
    done = Sandbox(tmp_path, tmp_path / "cache").call(*chosen)
    assert done.returncode == 2 and "judge.path=./nothing: no such directory" in done.stderr


def test_messages_are_shown_with_their_roles_where_there_are_several():
    one, two = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
    assert shown("text") == "text" and shown([one]) == "hi" and shown([one, two]) == "user: hi\n\nassistant: ho"


@pytest.mark.slow
def test_a_trial_asks_its_judge_and_a_second_one_asks_only_what_is_new(tmp_path, cache_dir):
    sandbox = Sandbox(tmp_path, cache_dir)
    chosen = (
        "+evaluator@eval.evaluators.judged=judged", "judge@eval.evaluators.judged.judge=served",
        "eval.evaluators.judged.judge.model=planted", "eval.evaluators.judged.labelled=10",
        "eval.evaluators.judged.max_prompts=10",
    )  # fmt: skip
    with serving(planted := Planted(first=0.5)) as url:
        at = f"eval.evaluators.judged.judge.url={url}"
        done = sandbox.run("algo=dpo", *chosen, at, "sweep=judged", HARNESS_CACHE=str(tmp_path / "own"))
        assert done.returncode == 0, done.stdout + done.stderr
        (result,) = sandbox.results("judged").values()
        metrics = result["metrics"]
        assert 0 <= metrics["eval/judge_win_rate"] <= 1 and metrics["eval/judge_first"] > 0.5
        assert metrics["baseline/judge_asked"] == 20 and metrics["eval/judge_asked"] <= 20
        before = len(planted.asked)
        more = sandbox.run("algo=dpo", *chosen, at, "seed=1", "sweep=again", HARNESS_CACHE=str(tmp_path / "own"))
        assert more.returncode == 0, more.stdout + more.stderr
        assert len(planted.asked) == len(set(planted.asked)) and len(planted.asked) - before <= 20
    lost = sandbox.run("algo=dpo", *chosen, at, "seed=2", "sweep=lost", HARNESS_CACHE=str(tmp_path / "own"))
    assert lost.returncode == 1 and "judge.url" in lost.stdout + lost.stderr, lost.stdout + lost.stderr
