"""``python -m harness tune``: the same number of trials for each algorithm, then the winners on the test split.

    python -m harness tune -m algo=dpo,simpo budget.trials=8 sweep=tuned

Trials of the search are judged on the validation split, with seed 0; the winner of each algorithm is trained anew with
other seeds and judged on the test split. A search that was interrupted goes on where it was: the same questions get the
same points, and finished trials are reused.
"""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from annotated_types import Ge, Gt

from harness.base.errors import UserError
from harness.base.formatting import count
from harness.config.building import build
from harness.runner.display import say
from harness.sweep.search import Sampler, Search, overrides_of, space_of

if TYPE_CHECKING:
    from harness.report.tuned import Arm
    from harness.sweep.expand import Point

WINNERS = "-winners"
SEED = 0
"""Of every trial of the search; the winners' are others, since the luck of this one had a say in their choice."""
OURS = ("seed", "eval.split", "hydra/sweeper")
FOLDER = ".tune"


@dataclass(frozen=True)
class Budget:
    """``budget.*`` of the command line.

    Attributes:
        trials: of each algorithm (of each combination that the command line names).
        seeds: with which a winner is trained anew.
        sampler: ``random`` draws every point for itself, so that the expected best of fewer can be told; ``tpe`` by
            what the points before it gave.
        batch: points that are asked for before the next are told; null is all at once, for ``tpe`` 4.
        draws: seed of the draws.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    trials: Annotated[int, Ge(2)]
    seeds: Annotated[int, Gt(1)] = 3
    sampler: Sampler = "random"
    batch: Annotated[int, Gt(0)] | None = None
    draws: Annotated[int, Ge(0)] = 0

    @property
    def rounds(self) -> list[int]:
        """Points of each round."""
        size = self.batch or (self.trials if self.sampler == "random" else min(4, self.trials))
        return [min(size, self.trials - done) for done in range(0, self.trials, size)]


@dataclass
class Contest:
    """One combination of the command line while it is tuned.

    Attributes:
        words: what tells it from the others, such as ``algo=dpo``.
        space: what is turned, in words.
        search: what asks for its points.
        points: tried so far, as overrides, with the trial's id.
    """

    words: tuple[str, ...]
    space: tuple[str, ...]
    search: Search
    points: list[tuple[tuple[str, ...], str]] = field(default_factory=list)


def main(argv: list[str]) -> int:
    """Search, train the winners, write the page; 0 where every trial of the winners is finished.

    Raises:
        UserError: the budget, the space or the sweep is wrong.
    """
    from harness.cli.launch import parse
    from harness.sweep.expand import named

    options = parse(argv)
    if options.help:
        print(__doc__)
        return 0
    overrides = named(options.overrides)
    try:
        return _tune(overrides, [options.config_dir] if options.config_dir else [])
    except KeyboardInterrupt:
        flags = ["--config-dir", options.config_dir] if options.config_dir else []
        print(f"resume:  {shlex.join(['python', '-m', 'harness', 'tune', '-m', *flags, *overrides])}")
        raise


def _tune(overrides: Sequence[str], folders: Sequence[str]) -> int:
    from harness.report.tuned import write_page

    budget, words = _budget(overrides)
    flags = [word for folder in folders for word in ("--config-dir", folder)]
    common, contests, place = _contests(words, budget, folders)
    scores: dict[str, Score] = {}
    metric = ""
    for number, size in enumerate(budget.rounds, 1):
        asked = [
            (contest, handle, (*contest.words, *overrides_of(point)))
            for contest in contests
            for handle, point in contest.search.ask(size)
        ]
        say(f"round {number} of {len(budget.rounds)}: {count(size, 'point')} for each of {len(contests)}")
        searched = [*flags, *common, f"seed={SEED}", "eval.split=validation", *_saves_nothing(common)]
        _, ids = _swept(searched, [job for *_, job in asked], place / f"round{number}.jsonl")
        metric, scores = _scores(place.parent)
        for (contest, handle, job), trial_id in zip(asked, ids, strict=True):
            contest.points.append((job, trial_id))
            contest.search.tell(handle, _told(scores, trial_id))
    arms = [_arm(contest, scores) for contest in contests]
    if lost := [arm.words for arm in arms if arm.winner is None]:
        raise UserError("of these no trial finished, so there is no winner", key="tune", value="; ".join(lost))
    name = f"{place.parent.name}{WINNERS}"
    common = [w for w in common if not w.startswith("sweep=")] + [f"sweep={name}"]
    jobs = [[*arm.overrides, f"seed={seed}"] for arm in arms for seed in range(SEED + 1, SEED + 1 + budget.seeds)]
    say(f"winners: {count(budget.seeds, 'seed')} of each of {len(arms)}, on the test split")
    code, ids = _swept([*flags, *common, "eval.split=test"], jobs, place / "winners.jsonl")
    groups = [ids[i : i + budget.seeds] for i in range(0, len(ids), budget.seeds)]
    page, lines = write_page(
        arms,
        groups,
        place.parent.with_name(name),
        metric,
        budget.trials,
        adaptive=budget.sampler != "random",
    )
    for line in lines:
        say(f"tuned:   {line}")
    print(page)
    return code


def _budget(words: Sequence[str]) -> tuple[Budget, list[str]]:
    """The budget, and the words that are the sweep's."""
    fields: dict[str, Any] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key.startswith("budget."):
            fields[key.removeprefix("budget.")] = _plain(value)
        elif key.lstrip("+~") in OURS:
            raise _chosen_here(word)
    if "trials" not in fields:
        raise UserError(
            "says how many trials each algorithm gets", key="budget.trials", value=None, fix="budget.trials=8"
        )
    budget = build({"_target_": f"{__name__}.Budget", **fields}, path="budget", base=Budget)
    return budget, [word for word in words if not word.startswith("budget.")]


def _chosen_here(word: str) -> UserError:
    key, _, value = word.lstrip("+~").partition("=")
    fix = "leave it out; budget.seeds says how many seeds the winners get"
    return UserError("is chosen by tune itself", key=key, value=value, fix=fix)


def _plain(value: str) -> Any:
    import yaml

    return yaml.safe_load(value)


def _contests(words: Sequence[str], budget: Budget, folders: Sequence[str]) -> tuple[list[str], list[Contest], Path]:
    """What all trials have in common, one contest for each combination, and the folder of the search's lists."""
    from harness.sweep.expand import arms_of, plan_sweep

    combinations = arms_of(words, folders)
    shared = set.intersection(*(set(c) for c in combinations))
    common = [w for w in combinations[0] if w in shared]
    contests, folder = [], Path()
    for combination in combinations:
        if chosen := [w for w in combination if w.lstrip("+~").partition("=")[0] in OURS]:
            raise _chosen_here(chosen[0])
        sweep = plan_sweep([*combination, f"seed={SEED}"], multirun=True, config_dirs=folders)
        folder = sweep.folder
        fixed = [w.lstrip("+").partition("=")[0] for w in combination]
        setup = sweep.points[0].setup
        if not setup.algo.trains:
            rule = "trains nothing, so there is nothing to tune"
            raise UserError(rule, key="algo", value=setup.algo.name, fix="leave it out")
        axes = space_of(setup, fixed)
        own = tuple(w for w in combination if w not in shared)
        search = Search(axes, budget.sampler, budget.draws)
        contests.append(Contest(own or _main(combination), tuple(map(str, axes)), search))
    return [w for w in common if w not in contests[0].words], contests, folder / FOLDER


def _main(combination: Sequence[str]) -> tuple[str, ...]:
    """What a lone combination is called by."""
    return tuple(w for w in combination if w.startswith("algo=")) or ("algo=dpo",)


def _saves_nothing(words: Sequence[str]) -> list[str]:
    """Policies of a search are not kept, unless they are asked for."""
    return [] if any(w.lstrip("+").startswith("train.save=") for w in words) else ["train.save=none"]


def _swept(words: Sequence[str], jobs: Sequence[Sequence[str]], file: Path) -> tuple[int, list[str]]:
    """Run the jobs as one sweep; its exit code, and the id of each job's trial.

    Raises:
        KeyboardInterrupt: a trial has not come to its end.
    """
    from harness.cli.launch import swept
    from harness.store.past import result_of

    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(job)}\n" for job in jobs), encoding="utf-8")
    code, sweep = swept(["-m", *words, "hydra/sweeper=listed", f"hydra.sweeper.file='{file.resolve()}'"])
    ids = _ids(jobs, sweep.points, sweep.duplicates)
    if any((found := result_of(sweep.folder / i)) is None or found.outcome.value == "interrupted" for i in ids if i):
        raise KeyboardInterrupt
    return code, ids


def _ids(
    jobs: Sequence[Sequence[str]], points: Sequence[Point], twins: Sequence[tuple[tuple[str, ...], str]]
) -> list[str]:
    """The trial of each job; empty for one that cannot run and is skipped."""
    known = [(set(p.overrides), p.trial.trial_id) for p in points] + [(set(o), t) for o, t in twins]
    return [next((i for words, i in known if set(job) <= words), "") for job in jobs]


class Score(NamedTuple):
    """What a trial of the search is worth.

    Attributes:
        value: of a trial that did not finish that of the base, which one would have kept; None where that is unknown.
        finished: whether it can win.
    """

    value: float | None
    finished: bool


def _scores(folder: Path) -> tuple[str, dict[str, Score]]:
    """The metric that ranks, and what each trial of a sweep has of it."""
    from harness.base.records import Outcome
    from harness.report.intervals import value_of
    from harness.report.leaderboard import quality_name
    from harness.store import results

    frame = results.from_folder(folder)
    metric = quality_name(frame)
    if metric is None:
        raise UserError("no trial finished with a figure to choose by", key="tune", value=str(folder))
    floor = metric.replace("eval/", "baseline/", 1)
    found: dict[str, Score] = {}
    for row in frame.to_dict("records"):
        done = row["outcome"] == Outcome.FINISHED and value_of(row, metric) is not None
        found[str(row["trial_id"])] = Score(value_of(row, metric if done else floor), done)
    return metric, found


def _told(scores: Mapping[str, Score], trial_id: str) -> float:
    """A trial's score, or the lowest that is known."""
    score = scores.get(trial_id)
    if score is not None and score.value is not None:
        return score.value
    return min((s.value for s in scores.values() if s.value is not None), default=0.0)


def _arm(contest: Contest, scores: Mapping[str, Score]) -> Arm:
    """What came of a contest; a trial that did not finish wins nothing."""
    from harness.report.tuned import Arm

    told = [(_told(scores, i), i in scores and scores[i].finished, job) for job, i in contest.points]
    best = max((t for t in told if t[1]), key=lambda t: t[0], default=None)
    own = set(contest.words)
    words = " ".join(contest.words)
    turned = () if best is None else tuple(itertools.filterfalse(own.__contains__, best[2]))
    return Arm(
        words=words,
        space=contest.space,
        scores=tuple(t[0] for t in told),
        winner=None if best is None else best[0],
        overrides=contest.words + turned,
        turned=turned,
    )
