"""What journals say: outcome, metrics, result."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from harness.base.records import SCHEMA_VERSION, Event, Outcome
from harness.store.journal import Journal
from harness.store.result import decide, metrics_of, read_result, since_attempt, write_json, write_result

DONE = Event(9.0, "done")
TRIAL = {
    "trial_id": "dpo-1",
    "config": {"algo": {"beta": 0.1}},
    "digests": {"dataset": "d"},
    "environment": {"python": "3.11"},
}


def error(**data) -> Event:
    return Event(8.0, "error", {"error": "ValueError", "message": "bad row", "oom": False, **data})


def metrics(time: float = 0.0, **values) -> Event:
    return Event(time, "metrics", {"values": values})


def named(**values) -> Event:
    """Metrics whose names have a slash: ``eval__correct`` is ``eval/correct``."""
    return metrics(**{name.replace("__", "/"): value for name, value in values.items()})


# -- decide --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exit_code", [0, None])
def test_a_worker_that_said_done_is_finished(exit_code):
    assert decide(exit_code, [Event(1.0, "start"), DONE]) == (Outcome.FINISHED, None)


def test_a_worker_that_was_done_in_time_is_finished_whatever_the_runner_did_then():
    assert decide(0, [DONE], timed_out=True, interrupted=True)[0] is Outcome.FINISHED


def test_a_crash_after_done_is_no_finish():
    assert decide(-11, [DONE]) == (Outcome.FAILED, "the process was killed by signal 11")


def test_an_exit_without_done_is_no_finish():
    outcome, reason = decide(0, [Event(1.0, "start")])
    assert outcome is Outcome.FAILED
    assert "code 0" in reason and "worker.log" in reason


def test_a_trial_ended_for_time_is_a_timeout():
    outcome, reason = decide(-9, [], timed_out=True)
    assert (outcome, "runner.timeout_s" in reason) == (Outcome.TIMEOUT, True)


def test_a_trial_ended_by_the_user_is_interrupted():
    assert decide(-9, [error()], interrupted=True) == (Outcome.INTERRUPTED, "interrupted by the user")


def test_a_journalled_error_is_the_reason_of_a_failure():
    assert decide(1, [error()]) == (Outcome.FAILED, "ValueError: bad row")


def test_the_last_error_counts():
    assert decide(1, [error(message="first"), error(message="last")])[1] == "ValueError: last"


def test_an_error_of_memory_is_oom():
    assert decide(1, [error(error="MemoryError", message="no room", oom=True)]) == (Outcome.OOM, "MemoryError: no room")


def test_a_kill_that_the_kernel_counted_is_oom():
    outcome, reason = decide(-9, [], killed_for_memory=True)
    assert (outcome, "out of memory" in reason) == (Outcome.OOM, True)


def test_a_kill_that_the_kernel_did_not_count_is_a_failure():
    assert decide(-9, []) == (Outcome.FAILED, "the process was killed by signal 9")


def test_another_signal_is_not_blamed_on_memory():
    assert decide(-11, [], killed_for_memory=True)[0] is Outcome.FAILED


def test_an_end_that_nobody_recorded_is_an_interruption():
    assert decide(None, [Event(1.0, "start")])[0] is Outcome.INTERRUPTED


def test_every_outcome_but_finished_has_a_reason_of_one_line():
    for outcome, reason in (decide(1, []), decide(-9, [], timed_out=True), decide(None, []), decide(1, [error()])):
        assert not outcome.succeeded
        assert reason and "\n" not in reason


def test_only_finished_and_reused_are_successes():
    assert {o for o in Outcome if o.succeeded} == {Outcome.FINISHED, Outcome.REUSED}


# -- metrics -------------------------------------------------------------------------------------------


def test_the_last_point_of_a_series_is_its_final_metric():
    events = [Event(t, "series", {"step": t, "values": {"train/loss": 1.0 / t}}) for t in (1, 2, 4)]
    assert metrics_of(events, []) == {"train/loss": 0.25}


def test_metrics_of_worker_and_runner_are_joined():
    assert metrics_of([metrics(a=1)], [metrics(b=2)]) == {"a": 1.0, "b": 2.0}


def test_a_delta_is_the_trained_figure_less_the_baseline():
    found = metrics_of([named(baseline__correct=0.25), named(eval__correct=0.75)], [])
    assert found == {"baseline/correct": 0.25, "eval/correct": 0.75, "delta/correct": 0.5}


def test_a_figure_without_baseline_has_no_delta():
    assert metrics_of([named(eval__preference_accuracy=0.9)], []) == {"eval/preference_accuracy": 0.9}


def test_errors_and_bounds_have_no_delta():
    both = {f"{side}__correct{end}": 0.5 for side in ("baseline", "eval") for end in ("_stderr", "_low", "_high")}
    assert not [name for name in metrics_of([named(**both)], []) if name.startswith("delta/")]


def test_figures_of_the_data_have_no_delta():
    both = {f"{side}__length_only_accuracy": 0.5 for side in ("baseline", "eval")}
    assert "delta/length_only_accuracy" not in metrics_of([named(**both)], [])


def test_a_nested_name_has_a_delta_too():
    found = metrics_of([metrics(**{"baseline/letters/exact_match": 0.5, "eval/letters/exact_match": 0.25})], [])
    assert found["delta/letters/exact_match"] == -0.25


@pytest.mark.parametrize("text", ["nan", "inf", None])
def test_a_newer_value_that_is_no_number_makes_the_metric_absent_and_not_stale(text):
    events = [named(baseline__correct=0.5, eval__correct=0.7), named(eval__correct=text)]
    assert metrics_of(events, []) == {"baseline/correct": 0.5}


def test_a_number_after_one_that_was_none_counts():
    assert metrics_of([metrics(a="nan"), metrics(a=2)], []) == {"a": 2.0}


def test_events_of_other_kinds_hold_no_metrics():
    assert metrics_of([Event(0.0, "phase", {"name": "train"}), DONE], [Event(0.0, "sample", {"used_mb": 5})]) == {}


# -- attempts ------------------------------------------------------------------------------------------


def test_a_trial_that_was_killed_has_the_time_it_took_and_of_its_last_phase():
    worker = [
        Event(10.0, "phase", {"name": "prepare", "previous": None, "previous_s": None}),
        Event(13.0, "phase", {"name": "train", "previous": "prepare", "previous_s": 3.0}),
    ]
    found = metrics_of(worker, [Event(9.0, "attempt", {}), Event(20.0, "sample", {})])
    assert found == {"time/prepare_s": 3.0, "time/train_s": 7.0, "time/total_s": 10.0}


def test_events_of_the_worker_count_from_the_runners_attempt_on():
    worker = [metrics(1.0, a=1), metrics(5.0, a=2), metrics(6.0, a=3)]
    assert since_attempt(worker, [Event(5.0, "attempt"), Event(7.0, "outcome")]) == worker[1:]


def test_without_an_attempt_every_event_counts():
    worker = [metrics(1.0, a=1)]
    assert since_attempt(worker, []) == worker


def test_rounding_of_time_stamps_loses_no_event():
    worker = [metrics(5.0 - 0.0001, a=1)]
    assert since_attempt(worker, [Event(5.0, "attempt")]) == worker


# -- files ---------------------------------------------------------------------------------------------


def lines(path: Path, *events: Event) -> None:
    path.write_text("".join(json.dumps({"time": e.time, "kind": e.kind, **e.data}) + "\n" for e in events))


def test_a_result_survives_the_disk(tmp_path):
    lines(tmp_path / "runner.jsonl", Event(1.0, "attempt"), metrics(5.0, **{"memory/peak_mb": 900}))
    lines(tmp_path / "worker.jsonl", metrics(2.0, **{"eval/correct": 0.5}), Event(3.0, "done"))
    written = write_result(tmp_path, Outcome.OOM, "no room", TRIAL)
    assert written.metrics == {"eval/correct": 0.5, "memory/peak_mb": 900.0}
    assert read_result(tmp_path) == written


def test_the_file_has_the_fields_that_other_programs_rely_on(tmp_path):
    write_result(tmp_path, Outcome.FINISHED, None, TRIAL)
    content = json.loads((tmp_path / "result.json").read_text())
    assert content == {
        **TRIAL,
        "schema_version": SCHEMA_VERSION,
        "outcome": "finished",
        "reason": None,
        "metrics": {},
    }


def test_how_the_code_behaves_stands_in_the_result_with_its_digest(tmp_path):
    told = {"name": "evaluator.mine", "digest": "x", "settings": {"rows": "r"}, "figures": {"mean": 0.5}}
    lines(tmp_path / "worker.jsonl", Event(1.0, "fingerprint", told), Event(2.0, "done"))
    written = write_result(tmp_path, Outcome.FINISHED, None, TRIAL)
    assert written.fingerprints == {"evaluator.mine": {"settings": {"rows": "r"}, "figures": {"mean": 0.5}}}
    assert written.digests == {
        **TRIAL["digests"],
        "behaviour.evaluator.mine": written.digests["behaviour.evaluator.mine"],
    }
    assert read_result(tmp_path) == written


def test_the_metrics_are_those_of_the_latest_attempt(tmp_path):
    lines(
        tmp_path / "runner.jsonl",
        Event(1.0, "attempt"),
        metrics(2.0, old=1),
        Event(10.0, "attempt"),
        metrics(12.0, b=2),
    )
    lines(tmp_path / "worker.jsonl", metrics(1.5, stale=1), metrics(11.0, a=1))
    assert write_result(tmp_path, Outcome.FINISHED, None, TRIAL).metrics == {"a": 1.0, "b": 2.0}


def test_an_attempt_that_continues_keeps_the_figures_of_the_one_before(tmp_path):
    lines(
        tmp_path / "runner.jsonl",
        Event(1.0, "attempt"),
        metrics(3.0, **{"memory/train_peak_mb": 900}),
        Event(10.0, "attempt", {"continues": True}),
    )
    lines(tmp_path / "worker.jsonl", metrics(2.0, **{"time/train_s": 1}), metrics(11.0, **{"eval/correct": 0.5}))
    found = write_result(tmp_path, Outcome.FINISHED, None, TRIAL).metrics
    assert found == {"memory/train_peak_mb": 900.0, "time/train_s": 1.0, "eval/correct": 0.5}


@pytest.mark.parametrize("content", [None, "", "{", "{}", '{"outcome": "splendid"}'])
def test_a_result_that_cannot_be_read_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    assert read_result(tmp_path) is None


def test_a_json_file_is_replaced_whole_and_leaves_no_draft(tmp_path):
    path = tmp_path / "deep" / "x.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2, "at": Path("/x")})
    assert json.loads(path.read_text()) == {"a": 2, "at": "/x"}
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_a_journalled_infinity_never_reaches_the_result(tmp_path):
    with closing(Journal(tmp_path / "runner.jsonl")) as book:
        book.write("attempt")
    with closing(Journal(tmp_path / "worker.jsonl")) as book:
        book.write("metrics", values={"train/loss": float("inf"), "train/kl": 0.5})
    assert write_result(tmp_path, Outcome.FAILED, "diverged", TRIAL).metrics == {"train/kl": 0.5}


def test_seconds_of_stages_that_a_trial_built_stand_apart_and_are_no_phase():
    def at(time: float, kind: str, **data):
        return Event(time, kind, data)

    events = [
        at(1.0, "phase", name="prepare", previous=None),
        at(2.0, "stage", stage="sft", hit=False, seconds=40.0),
        at(3.0, "stage", stage="baseline-preference", hit=False, seconds=2.5),
        at(3.5, "stage", stage="held-out-pairs", hit=False, seconds=2.0, within=True),
        at(4.0, "stage", stage="reward_model", hit=True, seconds=99.0),
        at(5.0, "phase", name=None, previous="prepare", previous_s=60.0),
    ]
    found = metrics_of(events, [])
    assert found["time/shared_s"] == 42.5 and found["time/total_s"] == 60.0
    assert "time/shared_s" not in metrics_of(events[:1], [])
