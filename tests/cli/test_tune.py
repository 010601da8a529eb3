"""Equal tuning from the command line: a whole one, its resumption, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from harness.cli.loops.tune import Budget
from harness.cli.main import main
from harness.store import results
from tests.conftest import QUICK
from tests.runs import Sandbox


@pytest.fixture
def sandbox(tmp_path: Path, cache_dir: Path) -> Sandbox:
    return Sandbox(tmp_path, cache_dir)


@pytest.mark.parametrize(
    ("budget", "rounds"),
    [
        (Budget(8), [8]),
        (Budget(8, sampler="tpe"), [4, 4]),
        (Budget(7, batch=3), [3, 3, 1]),
        (Budget(3, sampler="tpe"), [3]),
    ],
)
def test_points_are_asked_for_in_rounds(budget, rounds):
    assert budget.rounds == rounds


@pytest.mark.parametrize(
    ("words", "key", "rule"),
    [
        ((), "budget.trials", "how many trials"),
        (("budget.trials=1",), "budget.trials", "greater than or equal to 2"),
        (("budget.trials=4", "budget.tirals=3"), "budget.tirals", ""),
        (("budget.trials=4", "budget.sampler=grid"), "budget.sampler", "random"),
        (("budget.trials=4", "seed=0,1"), "seed", "chosen by tune itself"),
        (("budget.trials=4", "eval.split=test"), "eval.split", "chosen by tune itself"),
        (("budget.trials=4", "experiment=ci"), "seed", "chosen by tune itself"),
        (("budget.trials=4", "algo=none"), "algo", "trains nothing"),
        (("budget.trials=4", "algo=sft", "train.learning_rate=1e-3"), "tune", "fixes everything"),
    ],
)
def test_what_cannot_be_tuned_is_named(tmp_path, monkeypatch, capsys, words, key, rule):
    monkeypatch.chdir(tmp_path)
    assert main(["tune", "-m", *QUICK, "sweep=x", *words]) == 2
    said = capsys.readouterr().err
    assert f"error: {key}" in said and rule in said and "Traceback" not in said
    assert not (tmp_path / "outputs").exists() and not (tmp_path / "mlflow.db").exists()


def test_its_help_says_what_it_does(capsys):
    assert main(["tune", "--help"]) == 0
    assert "budget.trials=8" in capsys.readouterr().out


def test_a_trial_that_did_not_finish_counts_as_the_base_and_wins_nothing():
    from harness.cli.loops.tune import Contest, Score, _arm, _told

    scores = {"a": Score(0.1, True), "b": Score(0.4, False), "c": Score(None, False), "d": Score(0.2, True)}
    assert [_told(scores, i) for i in ("a", "b", "c", "d", "unknown")] == [0.1, 0.4, 0.1, 0.2, 0.1]
    points: list[tuple[tuple[str, ...], str]] = [(("algo=dpo", f"beta={i}"), i) for i in ("a", "b", "c", "d")]
    arm = _arm(Contest(("algo=dpo",), ("beta",), None, points), scores)  # type: ignore[arg-type]
    assert (arm.scores, arm.winner, arm.turned) == ((0.1, 0.4, 0.1, 0.2), 0.2, ("beta=d",))
    assert arm.overrides == ("algo=dpo", "beta=d")
    lost = _arm(Contest(("algo=dpo",), (), None, points[1:3]), scores)  # type: ignore[arg-type]
    assert lost.winner is None and lost.turned == ()


@pytest.mark.slow
def test_a_tuning_names_winners_and_goes_on_where_it_was(sandbox):
    words = ("tune", "-m", "algo=dpo,simpo", "budget.trials=2", "budget.seeds=2", "sweep=t")
    first = sandbox.run(*words[:1], *QUICK, *words[1:], quick=False)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1] == "reports/t/tuning.md"
    assert "tuned:   algo=" in first.stderr + first.stdout
    page = (sandbox.cwd / "reports" / "t" / "tuning.md").read_text()
    assert page.startswith("# Equal tuning: algo=dpo, algo=simpo\n") and "(expected_best.png)" in page
    assert (sandbox.cwd / "reports" / "t" / "expected_best.png").is_file()

    searched = results.from_folder(sandbox.cwd / "outputs" / "t")
    assert sorted(searched["algo"]) == ["dpo", "dpo", "simpo", "simpo"]
    assert set(searched["params.eval.split"]) == {"validation"} and set(searched["seed"]) == {0}
    assert not list((sandbox.cwd / "outputs" / "t").glob("*/artifacts/model"))
    won = results.from_folder(sandbox.cwd / "outputs" / "t-winners")
    assert set(won["params.eval.split"]) == {"test"} and set(won["seed"]) == {1, 2}
    for algo in ("dpo", "simpo"):
        of_it = searched[searched["algo"] == algo]
        best = of_it.loc[of_it["eval/true_reward"].idxmax()]
        rates = set(won.loc[won["algo"] == algo, "params.train.learning_rate"])
        assert rates == {best["params.train.learning_rate"]}
        assert f"train.learning_rate={float(best['params.train.learning_rate']):g}" in page

    times = {p: p.stat().st_mtime for p in sandbox.cwd.glob("outputs/*/*/result.json")}
    again = sandbox.run(*words[:1], *QUICK, *words[1:], quick=False)
    assert again.returncode == 0, again.stderr
    assert times == {p: p.stat().st_mtime for p in sandbox.cwd.glob("outputs/*/*/result.json")}
    assert (sandbox.cwd / "reports" / "t" / "tuning.md").read_text() == page


def test_a_round_is_a_list_that_can_be_run_again(tmp_path, monkeypatch, capsys):
    """Of a tuning that is refused late: the list of its first round lies there, a trial a line."""
    from harness.cli.loops import tune

    monkeypatch.chdir(tmp_path)
    seen: list[list[str]] = []

    def stop(words, jobs, file):
        seen.extend([*job] for job in jobs)
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "_swept", stop)
    words = ["tune", "-m", *QUICK, "sweep=x", "algo=dpo,simpo", "beta=0.3", "budget.trials=3"]
    assert main(words) == 1
    assert "resume:  python -m harness tune -m" in capsys.readouterr().out
    first = json.dumps(seen)
    assert [job[0] for job in seen] == ["algo=dpo"] * 3 + ["algo=simpo"] * 3
    assert all(re.fullmatch(r"train\.learning_rate=[\d.e-]+", job[1]) for job in seen)
    assert not any(word.startswith("beta=") for job in seen for word in job)  # fixed for all
    seen.clear()
    assert main(words) == 1 and json.dumps(seen) == first
    assert not Path("reports").exists()
