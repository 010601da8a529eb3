"""What a folder says of its past: the journal is the truth, and what is lost or stale is made from it."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.base.records import Outcome, Trial
from harness.runner.books import close_books, close_open_attempt, open_book
from harness.runner.decide_mode import decide_mode
from harness.store.journal import Journal
from harness.store.past import past_of, result_of, trial_folders
from harness.store.result import read_result, write_json

TRAINS = SimpleNamespace(algo=SimpleNamespace(trains=True))
OLD = Trial("dpo-1", "s", {"algo": {"beta": 0.1}}, "t1", "e1", {"dataset": "d"}, {"evaluation: seed": "0"})
NEW = replace(OLD, config={"algo": {"beta": 0.1}, "eval": {"seed": 1}}, eval_key="e2", why={"evaluation: seed": "1"})
DAMAGE = (None, b"", b"{", b"[]", b"null", b"12", b'{"outcome": "splendid"}', b"\xff\xfe", b"[" * 100_000)
"""What a lost, torn or overwritten file may hold."""


def begin(folder: Path, trial: Trial, mode: str = "train") -> Journal:
    return open_book(folder, trial, (), {"algo": "dpo"}, mode=mode, continues=mode == "evaluate", why="")


def finish(folder: Path, book: Journal, outcome: Outcome = Outcome.FINISHED, **values: float) -> None:
    with closing(Journal(folder / "worker.jsonl")) as worker:
        worker.write("metrics", values=values)
        if outcome is Outcome.FINISHED:
            worker.write("done")
    close_books(book, folder, [], None, outcome, None if outcome is Outcome.FINISHED else "because")


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A trial that finished under the old keys and kept its policy."""
    finish(tmp_path, begin(tmp_path, OLD), correct=0.5)
    (tmp_path / "artifacts" / "model").mkdir(parents=True)
    return tmp_path


def plan_for(folder: Path, trial: Trial) -> str:
    close_open_attempt(folder)
    return decide_mode(folder, trial, TRAINS, resume=True).mode  # type: ignore[arg-type]


def damage(path: Path, content: bytes | None) -> None:
    path.unlink() if content is None else path.write_bytes(content)


def test_a_result_carries_the_keys_and_the_attempt_it_was_made_under(finished):
    content = json.loads((finished / "result.json").read_text())
    assert (content["train_key"], content["eval_key"]) == ("t1", "e1")
    assert content["attempt"] == past_of(finished).began.time
    assert result_of(finished) == read_result(finished)


def test_a_kill_before_the_attempt_line_passes_no_old_result_off_as_the_new_configurations(finished):
    write_json(finished / "trial.json", {**vars(NEW), "environment": {}})  # as versions did that described first
    assert plan_for(finished, NEW) == "evaluate"
    assert json.loads((finished / "trial.json").read_text())["eval_key"] == "e1"
    assert plan_for(finished, OLD) == "reuse"


def test_a_kill_between_outcome_and_result_leaves_no_result_of_another_attempt(finished):
    before = (finished / "result.json").read_bytes()
    finish(finished, begin(finished, NEW, "evaluate"), correct=0.75)
    (finished / "result.json").write_bytes(before)
    assert result_of(finished).metrics["correct"] == 0.75  # for those who only read
    assert plan_for(finished, NEW) == "reuse"
    assert read_result(finished).metrics["correct"] == 0.75 and read_result(finished).eval_key == "e2"
    assert plan_for(finished, OLD) == "evaluate"


def test_a_result_of_an_attempt_under_the_same_keys_is_told_from_that_of_the_next(tmp_path):
    finish(tmp_path, begin(tmp_path, OLD), Outcome.FAILED)
    before = (tmp_path / "result.json").read_bytes()
    finish(tmp_path, begin(tmp_path, OLD), correct=1.0)
    (tmp_path / "result.json").write_bytes(before)
    assert plan_for(tmp_path, OLD) == "reuse"
    assert read_result(tmp_path).outcome is Outcome.FINISHED


@pytest.mark.parametrize("content", DAMAGE)
@pytest.mark.parametrize("name", ["result.json", "trial.json"])
def test_a_finished_trial_is_never_trained_again_for_a_lost_or_damaged_file(finished, name, content):
    whole = (finished / name).read_bytes()
    damage(finished / name, content)
    assert plan_for(finished, OLD) == "reuse"
    assert (finished / name).read_bytes() == whole


@pytest.mark.parametrize("content", DAMAGE)
def test_an_open_attempt_is_closed_without_the_files_that_describe_it(tmp_path, content):
    begin(tmp_path, OLD).close()
    damage(tmp_path / "trial.json", content)
    assert close_open_attempt(tmp_path)
    assert (read_result(tmp_path).outcome, read_result(tmp_path).config) == (Outcome.INTERRUPTED, OLD.config)


def test_a_result_outlives_its_journal(finished):
    (finished / "runner.jsonl").unlink()
    assert plan_for(finished, OLD) == "reuse"
    write_json(finished / "trial.json", {**vars(NEW), "environment": {}})
    assert plan_for(finished, NEW) == "evaluate"


def test_an_outcome_whose_attempt_is_damaged_is_not_taken_for_the_one_before(finished):
    finish(finished, begin(finished, NEW, "evaluate"), correct=0.75)
    lines = (finished / "runner.jsonl").read_bytes().split(b"\n")
    second = [i for i, line in enumerate(lines) if b'"attempt", ' in line][1]
    lines[second] = lines[second][:40]
    (finished / "runner.jsonl").write_bytes(b"\n".join(lines))
    assert plan_for(finished, OLD) == "evaluate"
    (finished / "result.json").unlink()
    assert plan_for(finished, OLD) == "train"


def test_a_result_of_an_older_version_is_made_anew_with_its_keys(finished):
    content = json.loads((finished / "result.json").read_text())
    write_json(finished / "result.json", {k: v for k, v in content.items() if k not in ("train_key", "eval_key")})
    assert plan_for(finished, OLD) == "reuse"
    assert read_result(finished).eval_key == "e1"


def test_a_folder_with_a_journal_is_a_trials_even_before_it_is_described(tmp_path):
    for name in ("b/runner.jsonl", "a/trial.json", "c/other.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert [p.name for p in trial_folders(tmp_path)] == ["a", "b"]


def test_damaged_lines_are_counted_in_the_books(tmp_path):
    book = begin(tmp_path, OLD)
    (tmp_path / "worker.jsonl").write_text("[1, 2]\n")
    finish(tmp_path, book)
    assert "worker.jsonl: 1 damaged lines are left out" in (tmp_path / "runner.jsonl").read_text()
