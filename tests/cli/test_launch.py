"""What is said before a sweep runs."""

from __future__ import annotations

from typing import Any

import pytest

from harness.base.errors import UserError
from harness.base.records import Outcome, TrialResult
from harness.cli import launch
from harness.store.result import SHARED, document, write_json


def test_an_unknown_option_is_named_and_hydras_usage_is_not_printed(capsys):
    with pytest.raises(UserError, match="unrecognized arguments: --bogus"):
        launch.run_sweep(["--bogus", "algo=dpo"])
    assert capsys.readouterr().err == ""


def test_the_time_left_leaves_out_what_the_first_trial_built_for_all(tmp_path, capsys):
    for name, whole, shared in (("a", 100.0, 70.0), ("b", 50.0, None)):
        metrics = {"time/total_s": whole} | ({} if shared is None else {SHARED: shared})
        (tmp_path / name).mkdir()
        result = TrialResult(name, Outcome.FINISHED, None, {}, metrics, {}, {})
        write_json(tmp_path / name / "result.json", document(result))
    launch._tell_rest(tmp_path, ["a", "b", "c", "d"], "b")
    assert "2 trials left, about 80 s (the 2 so far took, on average, 40 s)" in capsys.readouterr().err


def test_a_sweep_is_concluded_whatever_its_launcher_throws(tmp_path, monkeypatch, capsys):
    """submitit raises for a job that ran out of time or was cancelled, with all others' results still to come."""

    def gives_up(*_: Any) -> None:
        raise RuntimeError("Job 7 timed out and was requeued\nmore of it")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "_hydra", gives_up)
    few = ("sweep=test", "task.pairs=20", "task.eval_pairs=4", "task.eval_prompts=4", "runner.predict=false")
    arguments = ["-m", "algo=dpo,ipo", *few, "hydra/launcher=joblib", "tracking.uri=sqlite:///m.db"]
    assert launch.run_sweep(arguments) == 1
    said = capsys.readouterr()
    assert "the launcher gave up" in said.err and "Job 7 timed out" in said.err and "Traceback" not in said.err
    assert said.out.count("not started:") == 2 and "resume:  python -m harness -m algo=dpo,ipo" in said.out
    monkeypatch.setattr(launch, "_hydra", gives_up)
    with pytest.raises(RuntimeError):  # of our own process it is a fault of ours
        launch.run_sweep([*arguments[:-2], "tracking.uri=sqlite:///m.db"])
