"""What the runner decides: reuse, evaluate, continue or train; how it closes the books of a dead one."""

from __future__ import annotations

import json
import os
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.base.errors import UserError
from harness.base.records import Event, Outcome, Trial
from harness.runner import supervise
from harness.runner.child import describe, is_out_of_memory
from harness.runner.decide_mode import Decision, decide_mode
from harness.runner.run_trial import Runner, close_open_attempt, run_trial
from harness.store import checkpoints, journal
from harness.store.journal import Journal, read
from harness.store.memory_metrics import (
    Expected,
    OfRank,
    lens_of,
    memory_metrics,
    out_of_memory,
    phase_rows,
    summary_from,
)
from harness.store.result import read_result, write_json
from harness.telemetry.sampler import MemorySummary
from harness.trial.checks import check_data
from harness.trial.identify import identify
from harness.trial.job import Job

TRAINS = SimpleNamespace(algo=SimpleNamespace(trains=True))
TRAINS_NOT = SimpleNamespace(algo=SimpleNamespace(trains=False))
TRIAL = Trial(
    "dpo-1",
    "s",
    {"algo": {"beta": 0.1}},
    train_key="t1",
    eval_key="e1",
    digests={"dataset": "d"},
    why={"data": "d1", "training code": "c1", "evaluation: seed": "0"},
)


def checkpoint_in(folder: Path, step: int = 5, *, whole: bool = True) -> Path:
    """A checkpoint of a trial, from which it goes on where it is ``whole``."""
    made = checkpoints.of_step(folder / "checkpoints", step)
    made.mkdir(parents=True)
    (made / "trainer_state.json").write_text("{")
    if whole:
        checkpoints.seal(made)
    return made


def past(folder: Path, outcome: str = "finished", *, checkpoint: bool = False, model: bool = False) -> Path:
    """The folder of a trial that ended so."""
    write_json(folder / "trial.json", {**vars(TRIAL), "environment": {}})
    write_json(
        folder / "result.json",
        {
            "schema_version": 1, "trial_id": TRIAL.trial_id, "outcome": outcome, "reason": None, "config": {},
            "metrics": {}, "digests": {}, "environment": {},
        },
    )  # fmt: skip
    if checkpoint:
        checkpoint_in(folder)
    if model:
        (folder / "artifacts" / "model").mkdir(parents=True)
    return folder


def changed(**fields) -> Trial:
    return replace(TRIAL, **fields)


NEW_CODE = changed(train_key="t2", eval_key="e2", why={**TRIAL.why, "training code": "c2"})
NEW_EVALUATOR = changed(eval_key="e2", why={**TRIAL.why, "evaluation: seed": "1"})


# -- the decision --------------------------------------------------------------------------------------


def test_a_trial_without_a_past_trains(tmp_path):
    assert decide_mode(tmp_path, TRIAL, TRAINS, resume=True) == Decision("train", False, False, "first attempt")


def test_a_finished_trial_is_reused(tmp_path):
    decided = decide_mode(past(tmp_path), TRIAL, TRAINS, resume=True)
    assert (decided.mode, decided.continues) == ("reuse", False)


def test_a_finished_trial_with_a_new_evaluator_is_evaluated_without_training(tmp_path):
    decided = decide_mode(past(tmp_path, model=True), NEW_EVALUATOR, TRAINS, resume=True)
    assert (decided.mode, decided.continues, decided.from_checkpoint) == ("evaluate", True, False)
    assert decided.why == "evaluates without training; changed: evaluation: seed"


def test_without_a_kept_policy_a_new_evaluator_means_training_again(tmp_path):
    decided = decide_mode(past(tmp_path), NEW_EVALUATOR, TRAINS, resume=True)
    assert (decided.mode, decided.continues) == ("train", False)


def test_an_untrained_model_needs_no_kept_policy_to_be_evaluated(tmp_path):
    assert decide_mode(past(tmp_path), NEW_EVALUATOR, TRAINS_NOT, resume=True).mode == "evaluate"


def test_changed_code_trains_again_and_says_why(tmp_path):
    decided = decide_mode(past(tmp_path, model=True, checkpoint=True), NEW_CODE, TRAINS, resume=True)
    assert decided == Decision("train", False, False, "trains again; changed: training code")


def test_changed_data_trains_again_and_says_why(tmp_path):
    data = changed(train_key="t2", eval_key="e2", why={**TRIAL.why, "data": "d2"})
    assert decide_mode(past(tmp_path, model=True), data, TRAINS, resume=True).why == "trains again; changed: data"


@pytest.mark.parametrize("outcome", ["failed", "oom", "timeout", "interrupted", "unfit"])
def test_what_did_not_finish_starts_over(tmp_path, outcome):
    decided = decide_mode(past(tmp_path, outcome), TRIAL, TRAINS, resume=True)
    assert decided == Decision("train", False, False, f"was {outcome}; starts over")


def test_what_left_a_checkpoint_continues_from_it(tmp_path):
    decided = decide_mode(past(tmp_path, "interrupted", checkpoint=True), TRIAL, TRAINS, resume=True)
    assert decided == Decision("train", True, True, "was interrupted; continues from its last checkpoint")


def test_a_checkpoint_that_was_being_written_is_none(tmp_path):
    folder = past(tmp_path, "interrupted")
    checkpoint_in(folder, 10, whole=False)
    assert decide_mode(folder, TRIAL, TRAINS, resume=True) == Decision(
        "train", False, False, "was interrupted; starts over"
    )
    whole = checkpoint_in(folder)
    checkpoint_in(folder, 20, whole=False)
    assert decide_mode(folder, TRIAL, TRAINS, resume=True).from_checkpoint
    assert checkpoints.newest(folder / "checkpoints") == whole


def test_a_checkpoint_of_other_training_is_no_place_to_continue_from(tmp_path):
    decided = decide_mode(past(tmp_path, "interrupted", checkpoint=True), NEW_CODE, TRAINS, resume=True)
    assert (decided.mode, decided.continues, decided.from_checkpoint) == ("train", False, False)


def test_a_new_evaluator_is_no_reason_to_lose_a_checkpoint(tmp_path):
    assert decide_mode(past(tmp_path, "oom", checkpoint=True), NEW_EVALUATOR, TRAINS, resume=True).from_checkpoint


@pytest.mark.parametrize("outcome", ["finished", "interrupted"])
def test_resume_false_trains_whatever_there_is(tmp_path, outcome):
    decided = decide_mode(past(tmp_path, outcome, checkpoint=True, model=True), TRIAL, TRAINS, resume=False)
    assert decided == Decision("train", False, False, "trains again: resume=false")


def test_a_trained_policy_whose_new_evaluation_was_killed_is_not_trained_again(tmp_path):
    folder = past(tmp_path, "interrupted", model=True)
    with closing(Journal(folder / "runner.jsonl")) as book:
        book.write("attempt", mode="train", continues=False, train_key="t1", eval_key="e0")
        book.write("outcome", outcome="finished", reason=None)
        book.write("attempt", mode="evaluate", continues=True, train_key="t1", eval_key="e1")
        book.write("outcome", outcome="interrupted", reason="the runner was killed")
    assert decide_mode(folder, TRIAL, TRAINS, resume=True).mode == "evaluate"


def failed_after_training(folder: Path, outcome: str, *, where: str = "artifacts/model") -> Path:
    """A trial whose only attempt had ended training when it ended so."""
    past(folder, outcome)
    (folder / where).mkdir(parents=True)
    with closing(Journal(folder / "runner.jsonl")) as book, closing(Journal(folder / "worker.jsonl")) as worker:
        book.write("attempt", mode="train", continues=False, train_key="t1", eval_key="e1")
        worker.write("trained")
        book.write("outcome", outcome=outcome, reason="judging failed")
    return folder


@pytest.mark.parametrize("outcome", ["failed", "oom", "timeout", "interrupted"])
@pytest.mark.parametrize("where", ["artifacts/model", "unjudged"])
def test_a_trial_whose_training_had_ended_goes_on_at_evaluate_whatever_ended_it(tmp_path, outcome, where):
    folder = failed_after_training(tmp_path, outcome, where=where)
    for trial in (TRIAL, NEW_EVALUATOR):
        assert decide_mode(folder, trial, TRAINS, resume=True) == Decision(
            "evaluate", True, False, f"was {outcome} after training; evaluates without training"
        )
    assert decide_mode(folder, NEW_CODE, TRAINS, resume=True).mode == "train"
    assert decide_mode(folder, TRIAL, TRAINS, resume=False).mode == "train"


def test_a_trained_policy_that_is_gone_is_trained_again(tmp_path):
    folder = failed_after_training(tmp_path, "failed")
    (folder / "artifacts" / "model").rmdir()
    assert decide_mode(folder, TRIAL, TRAINS, resume=True).mode == "train"


def test_the_policy_of_an_earlier_training_is_not_taken_for_that_of_one_which_did_not_end(tmp_path):
    folder = failed_after_training(tmp_path, "failed")
    time.sleep(0.01)  # attempts begin later than what was written before them, by more than clocks are rounded to
    with closing(Journal(folder / "runner.jsonl")) as book:
        book.write("attempt", mode="train", continues=False, train_key="t1", eval_key="e1")
        book.write("outcome", outcome="failed", reason="in training")
    assert decide_mode(folder, TRIAL, TRAINS, resume=True).mode == "train"


# -- run_trial, with a process that is none ------------------------------------------------------------


@pytest.fixture
def trial_of(assemble, tmp_path, monkeypatch):
    """A real setup and trial below ``tmp_path``; its processes end at once with code 1 and say nothing."""
    fake = SimpleNamespace(pid=os.getpid(), exitcode=1, is_alive=lambda: False, join=lambda *_: None)
    monkeypatch.setattr(supervise, "start", lambda *_, **__: fake)

    def make(*overrides):
        setup = assemble(f"outputs={tmp_path}", "task.pairs=20", "task.eval_pairs=4", "task.eval_prompts=4", *overrides)
        return setup, identify(setup, check_data(setup)), Runner()

    return make


def test_a_process_that_ends_without_a_word_is_a_failed_trial_with_its_books_closed(trial_of, tmp_path, capsys):
    setup, trial, group = trial_of()
    outcome, result = run_trial(setup, trial, group, None)
    folder = tmp_path / "test" / trial.trial_id
    assert outcome is result.outcome is Outcome.FAILED
    assert read_result(folder) == result
    assert result.config["algo"]["name"] == "dpo"
    assert [e.kind for e in journal.read(folder / "runner.jsonl")][-1] == "outcome"
    assert {p.name for p in folder.iterdir()} >= {"config.yaml", "trial.json", "runner.jsonl", "result.json"}
    capsys.readouterr()


def test_a_trial_that_starts_over_leaves_no_checkpoint_of_other_training(trial_of, tmp_path, monkeypatch, capsys):
    setup, trial, group = trial_of()
    folder = tmp_path / "test" / trial.trial_id
    run_trial(setup, trial, group, None)
    stale = checkpoint_in(folder, 150)
    run_trial(setup, replace(trial, train_key="new code"), group, None)  # fails, and leaves no checkpoint of its own
    assert not stale.exists()
    assert not decide_mode(folder, replace(trial, train_key="new code"), setup, resume=True).from_checkpoint
    capsys.readouterr()


# -- the books of a runner that died -------------------------------------------------------------------


def opened(folder: Path, *worker: tuple, samples: tuple = (), **attempt) -> Path:
    """A folder as a killed runner leaves it: an attempt without outcome."""
    write_json(folder / "trial.json", {**vars(TRIAL), "environment": {}})
    with closing(Journal(folder / "runner.jsonl")) as book:
        book.write("attempt", mode="train", continues=False, **attempt)
        for phase, used_mb, lens in samples:
            book.write("sample", t=1.0, phase=phase, used_mb=used_mb, lens=lens, n=4)
    with closing(Journal(folder / "worker.jsonl")) as book:
        for kind, data in worker:
            book.write(kind, **data)
    return folder


NVML = (("prepare", 100.0, "nvml_process"), ("train", 900.0, "nvml_process"), ("train", 700.0, "nvml_process"))


def test_an_attempt_whose_runner_was_killed_is_closed_as_interrupted_with_its_peaks(tmp_path):
    folder = opened(tmp_path, ("start", {}), ("metrics", {"values": {"baseline/correct": 0.5}}), samples=NVML)
    assert close_open_attempt(folder)
    result = read_result(folder)
    assert (result.outcome, result.reason) == (Outcome.INTERRUPTED, "the runner was killed")
    assert result.metrics == {
        "baseline/correct": 0.5,
        "memory/prepare_peak_mb": 100.0,
        "memory/train_peak_mb": 900.0,
        "memory/peak_mb": 900.0,
    }
    memory = next(e.data for e in journal.read(folder / "runner.jsonl") if e.kind == "memory")
    assert (memory["lens"], memory["samples"], memory["high_water_phase"]) == ("nvml_process", 12, "train")


def test_an_attempt_whose_worker_was_done_is_closed_as_finished(tmp_path):
    folder = opened(tmp_path, ("start", {}), ("done", {}), samples=NVML)
    assert close_open_attempt(folder)
    assert (read_result(folder).outcome, read_result(folder).reason) == (Outcome.FINISHED, None)


def test_books_are_closed_once(tmp_path):
    folder = opened(tmp_path, ("done", {}))
    assert close_open_attempt(folder)
    before = (folder / "runner.jsonl").read_bytes()
    assert not close_open_attempt(folder)
    assert (folder / "runner.jsonl").read_bytes() == before


def test_a_folder_without_attempt_has_nothing_to_close(tmp_path):
    assert not close_open_attempt(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_attempt_killed_before_its_first_sample_is_closed_without_figures(tmp_path):
    folder = opened(tmp_path)
    assert close_open_attempt(folder)
    assert read_result(folder).metrics == {}


def test_a_torn_line_of_the_killed_runner_does_not_matter(tmp_path):
    folder = opened(tmp_path, ("start", {}), samples=NVML)
    with (folder / "runner.jsonl").open("a") as file:
        file.write('{"time": 1.0, "kind": "sam')
    assert close_open_attempt(folder)
    assert read_result(folder).metrics["memory/peak_mb"] == 900.0


def test_done_of_an_earlier_attempt_finishes_no_later_one(tmp_path):
    folder = opened(tmp_path, ("done", {}))
    lines = (folder / "worker.jsonl").read_text().splitlines()
    early = {**json.loads(lines[0]), "time": 1.0}
    (folder / "worker.jsonl").write_text(json.dumps(early) + "\n")
    assert close_open_attempt(folder)
    assert read_result(folder).outcome is Outcome.INTERRUPTED


def test_the_peak_of_training_survives_an_attempt_that_only_evaluates(tmp_path):
    folder = opened(tmp_path, ("done", {}), samples=NVML)
    close_open_attempt(folder)
    with closing(Journal(folder / "runner.jsonl")) as book:
        book.write("attempt", mode="evaluate", continues=True)
        book.write("sample", t=2.0, phase="evaluate", used_mb=300.0, lens="nvml_process", n=1)
    close_open_attempt(folder)
    metrics = read_result(folder).metrics
    assert (metrics["memory/train_peak_mb"], metrics["memory/evaluate_peak_mb"]) == (900.0, 300.0)
    assert metrics["memory/peak_mb"] == 900.0


def test_the_peak_of_a_whole_trial_is_that_of_all_attempts_it_consists_of(trial_of, tmp_path, monkeypatch, capsys):
    setup, trial, group = trial_of()
    peaks = iter(({"train": 900.0}, {"train": 400.0, "evaluate": 300.0}))

    class Sampler:
        latest_mb = None

        def __init__(self, *_, **__):
            self.peaks = next(peaks)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def summary(self):
            return summary("nvml_process", self.peaks)

    monkeypatch.setattr(supervise, "MemorySampler", Sampler)
    run_trial(setup, trial, group, None)
    whole = checkpoint_in(tmp_path / "test" / trial.trial_id)
    torn = checkpoint_in(tmp_path / "test" / trial.trial_id, 6, whole=False)
    metrics = run_trial(setup, trial, group, None)[1].metrics  # continues from the checkpoint
    assert whole.exists() and not torn.exists()
    assert metrics["memory/train_peak_mb"] == metrics["memory/peak_mb"] == 900.0
    assert metrics["memory/evaluate_peak_mb"] == 300.0
    capsys.readouterr()


# -- memory figures ------------------------------------------------------------------------------------


def summary(lens, peaks):
    top = max(peaks, key=peaks.__getitem__, default=None)
    return MemorySummary(lens, peaks.get(top), peaks, top, 10, 0, None, None)


def phase(previous, mark):
    return Event(1.0, "phase", {"name": "x", "previous": previous, "host_peak_mb": mark})


def test_peaks_are_given_per_phase_and_for_the_trial():
    assert memory_metrics([], summary("nvml_process", {"prepare": 10.0, "train": 30.0})) == {
        "memory/prepare_peak_mb": 10.0,
        "memory/train_peak_mb": 30.0,
        "memory/peak_mb": 30.0,
    }


def test_without_a_gpu_the_kernels_high_water_mark_raises_a_sampled_peak_and_never_lowers_it():
    worker = [phase("prepare", 25.0), phase("train", 20.0), phase("evaluate", 5.0)]
    assert memory_metrics(worker, summary("private", {"prepare": 10.0, "train": 30.0})) == {
        "memory/prepare_peak_mb": 25.0,
        "memory/train_peak_mb": 30.0,
        "memory/evaluate_peak_mb": 5.0,
        "memory/peak_mb": 30.0,
    }


def test_what_a_trial_built_for_the_cache_is_no_cost_of_its_own():
    marks = [phase("prepare", 25.0), phase("baseline", 60.0), phase("reference", 50.0), phase("train", 40.0)]
    built = [Event(1.0, "stage", {"stage": name, "hit": False}) for name in ("sft", "baseline-preference", "reference")]
    assert memory_metrics(marks, None)["memory/peak_mb"] == 60.0
    assert memory_metrics([*marks, *built, Event(2.0, "done")], None)["memory/peak_mb"] == 40.0
    samples = [Event(1.0, "stage", {"stage": "held-out-samples", "hit": False})]  # drawn in the midst of evaluation
    pairs = [Event(1.0, "stage", {"stage": "held-out-pairs", "hit": False, "within": True})]  # counted by another
    assert memory_metrics([*marks, *samples, *pairs, Event(2.0, "done")], None)["memory/peak_mb"] == 60.0
    assert memory_metrics([*marks, *built], None)["memory/peak_mb"] == 60.0  # of one that failed it is where it got


def test_of_several_processes_the_largest_is_what_a_device_needs_room_for():
    leader, other = [phase("prepare", 40.0), phase("train", 70.0), Event(2.0, "done")], [phase("train", 90.0)]
    ranks = {0: OfRank(leader, summary("private", {"train": 60.0})), 1: OfRank(other, summary("private", {}))}
    assert memory_metrics(leader, summary("private", {"train": 150.0}), ranks) == {
        "memory/prepare_peak_mb": 40.0,
        "memory/train_peak_mb": 90.0,
        "memory/peak_mb": 90.0,
        "memory/rank_0_peak_mb": 70.0,
        "memory/rank_1_peak_mb": 90.0,
        "memory/all_ranks_peak_mb": 150.0,
    }
    gpus = {k: OfRank([], summary("nvml_process", {"train": mb})) for k, mb in enumerate((30.0, 20.0))}
    assert memory_metrics([], summary("nvml_process", {"train": 50.0}), gpus)["memory/peak_mb"] == 30.0


def test_a_killed_runner_has_written_what_each_process_took(tmp_path):
    book = Journal(tmp_path / "runner.jsonl")
    book.write("attempt")
    row = {"t": 1.0, "phase": "train", "lens": "private", "n": 4}
    book.write("sample", **row, used_mb=50.0)
    for rank, used_mb in ((0, 20.0), (1, 30.0), (1, 25.0)):
        book.write("rank_sample", **row, used_mb=used_mb, rank=rank)
    book.close()
    events = read(tmp_path / "runner.jsonl")
    found = [summary_from(events, rank) for rank in (None, 0, 1, 2)]
    assert [None if one is None else one.peak_mb for one in found] == [50.0, 20.0, 30.0, None]


def test_with_a_gpu_the_marks_of_host_memory_are_another_thing():
    assert memory_metrics([phase("train", 5000.0)], summary("nvml_process", {"train": 30.0}))["memory/peak_mb"] == 30.0


@pytest.mark.parametrize("lens", ["private", None])
def test_on_a_gpu_of_which_the_driver_tells_nothing_torchs_own_figures_stand_and_not_the_hosts(lens):
    told = [
        Event(0.0, "device", {"device": "cuda", "uuid": "MIG-1"}),
        Event(1.0, "phase", {"previous": "train", "name": "evaluate", "host_peak_mb": 9000, "reserved_peak_mb": 700}),
        Event(2.0, "phase", {"previous": "evaluate", "name": None, "host_peak_mb": 9500, "reserved_peak_mb": 300}),
    ]
    seen = None if lens is None else summary(lens, {"train": 8000.0, "evaluate": 8500.0})
    assert memory_metrics(told, seen) == {
        "memory/train_peak_mb": 700.0,
        "memory/evaluate_peak_mb": 300.0,
        "memory/peak_mb": 700.0,
    }
    assert lens_of(told, seen) == "torch"
    assert lens_of(told, summary("nvml_process", {"train": 1.0})) == "nvml_process"


def test_the_kernels_marks_stand_where_nothing_was_sampled():
    assert memory_metrics([phase("train", 20.0)], None) == {"memory/train_peak_mb": 20.0, "memory/peak_mb": 20.0}


def test_what_was_not_measured_is_absent():
    worker = [phase(None, 20.0), phase("train", None), phase("train", "nan"), Event(1.0, "done")]
    assert memory_metrics(worker, summary("private", {})) == {}


def test_stretches_of_phases_keep_their_peaks_and_the_last_one_of_a_dead_trial_has_none():
    worker = [
        Event(10.0, "phase", {"name": "prepare", "previous": None}),
        Event(12.0, "phase", {"name": "train", "previous": "prepare", "host_peak_mb": 50.0}),
        Event(15.0, "error", {"error": "MemoryError"}),
    ]
    first, last = phase_rows(worker)
    assert (first["phase"], first["began"], first["seconds"], first["host_peak_mb"]) == ("prepare", 10.0, 2.0, 50.0)
    assert (last["phase"], last["seconds"], last["host_peak_mb"]) == ("train", 3.0, None)
    assert phase_rows([]) == []


# -- what was predicted --------------------------------------------------------------------------------

BIG = Expected(tensors=9e9, needed=10e9, phase="train", limit=8e9, where="a GPU")


def test_a_trial_that_cannot_fit_is_not_started_where_that_is_asked_for(trial_of, tmp_path, capsys):
    setup, trial, group = trial_of()
    outcome, result = run_trial(setup, trial, replace(group, skip_unfit=True), None, expected=BIG)
    assert outcome is result.outcome is Outcome.UNFIT
    assert result.reason == "predicted to need 10,000 MB in phase train, and a GPU has 8,000 MB"
    assert (
        result.metrics["memory/predicted_peak_mb"] == 10_000 and result.metrics["memory/predicted_tensors_mb"] == 9_000
    )
    assert run_trial(setup, trial, group, None, expected=BIG)[0] is Outcome.FAILED  # started: it was not asked for
    capsys.readouterr()


def test_a_trial_that_needs_more_than_twice_what_there_is_is_not_started_unless_asked_for(trial_of, capsys):
    setup, trial, group = trial_of()
    hopeless = replace(BIG, limit=4.9e9)
    assert not BIG.hopeless and hopeless.hopeless and not replace(BIG, limit=None).hopeless
    outcome, result = run_trial(setup, trial, group, None, expected=hopeless)
    assert outcome is Outcome.UNFIT and "runner.skip_unfit=false starts it all the same" in result.reason
    assert run_trial(setup, trial, replace(group, skip_unfit=False), None, expected=hopeless)[0] is Outcome.FAILED
    capsys.readouterr()


def test_one_that_fits_is_started(trial_of, capsys):
    setup, trial, group = trial_of()
    fits = replace(BIG, limit=11e9)
    assert run_trial(setup, trial, replace(group, skip_unfit=True), None, expected=fits)[0] is Outcome.FAILED
    assert replace(BIG, limit=None).fits
    capsys.readouterr()


def test_running_out_of_memory_tells_what_was_predicted_how_far_it_got_and_what_there_was():
    seen = summary("nvml_process", {"prepare": 10.0, "train": 7_900.0})
    assert out_of_memory("CUDA out of memory", BIG, seen, None) == (
        "CUDA out of memory (predicted 10,000 MB; high-water mark 7,900 MB in train; limit 8,000 MB)"
    )
    assert out_of_memory("MemoryError", None, None, 2500) == "MemoryError (limit 2,500 MB beyond its start)"
    assert out_of_memory("MemoryError", None, summary("private", {}), None) == "MemoryError"


def test_a_preflight_that_fails_is_the_trials_end(trial_of, tmp_path, capsys):
    setup, trial, group = trial_of()
    outcome, result = run_trial(setup, trial, replace(group, preflight=True), None)
    assert outcome is Outcome.FAILED and result.reason.startswith("in preflight, one step of the longest rows: ")
    assert (tmp_path / "test" / trial.trial_id / "preflight").is_dir()
    capsys.readouterr()


# -- errors of the child -------------------------------------------------------------------------------


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("Tried to allocate"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_memory_that_ran_out_is_recognised(error):
    assert is_out_of_memory(error)
    assert describe(error)["oom"] is True


@pytest.mark.parametrize(
    "error",
    [ValueError("out of memory"), RuntimeError("shape mismatch"), KeyError("memory"), UserError("out of memory"), None],
)
def test_other_errors_are_not(error):
    assert not is_out_of_memory(error)


def raised(*errors: BaseException) -> BaseException:
    """The last of ``errors``, each raised while the one before was handled."""
    try:
        if len(errors) > 1:
            try:
                raise raised(*errors[:-1])
            except BaseException:
                raise errors[-1]  # noqa: B904
        raise errors[0]
    except BaseException as error:
        return error


def test_memory_that_ran_out_is_recognised_behind_the_error_that_it_caused():
    assert is_out_of_memory(raised(MemoryError(), ValueError("cleanup failed")))
    outer = ValueError("wrapped")
    outer.__cause__ = MemoryError()
    assert is_out_of_memory(outer)


def test_an_error_is_described_in_one_line_and_in_full():
    described = describe(raised(ValueError("first line\nsecond line")))
    assert (described["error"], described["message"]) == ("ValueError", "first line")
    assert (described["oom"], described["user_error"]) == (False, False)
    assert "second line" in described["traceback"] and "Traceback" in described["traceback"]
    json.dumps(described)


def test_an_error_without_words_and_one_with_too_many_are_described_too():
    assert describe(ValueError())["message"] == ""
    assert len(describe(ValueError("x" * 9000))["message"]) == 900


def test_a_user_error_is_marked_as_one():
    described = describe(UserError("must be positive", key="algo.beta", value=-1))
    assert described["user_error"] is True
    assert described["message"] == "algo.beta=-1: must be positive"


def test_where_no_checkpoint_can_be_asked_for_the_books_are_closed_at_once(tmp_path):
    job = Job(folder=str(tmp_path / "gone"), plain={}, cache_dir="")
    began = time.monotonic()
    supervise._keep(job, SimpleNamespace(is_alive=lambda: True, join=time.sleep), 30.0)
    assert time.monotonic() - began < 5


def test_a_checkpoint_is_waited_for_until_it_is_there(tmp_path):
    job = Job(folder=str(tmp_path), plain={}, cache_dir="")
    looks = []

    def join(seconds):
        looks.append(job.wish.exists())
        job.wish.unlink()

    supervise._keep(job, SimpleNamespace(is_alive=lambda: True, join=join), 30.0)
    assert looks == [True] and not job.wish.exists()
