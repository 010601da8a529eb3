"""Predictions of trials: from the cache, or rehearsed in processes of their own. No torch here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.formatting import count
from harness.base.streams import silence
from harness.config import closure, identity
from harness.config.theirs import as_theirs, own_classes
from harness.plan.gpus import needed, resident
from harness.runner import forkserver
from harness.trial.assemble import Setup, with_baseline
from harness.trial.data import cache_of, load_data
from harness.trial.identify import training_config

STAGE = "prediction"
REHEARSED = ("harness.trial.heap",)
"""What changes no number of a trial, and does change a prediction."""
NO_MATTER_OF_CODE = (
    *(n for n in closure.NO_NUMBER if n not in REHEARSED), "harness.base.streams", "harness.base.gc_tuning",
    "harness.runner",
)  # fmt: skip
NO_MATTER = (
    "learning_rate", "steps", "epochs", "budget", "warmup_ratio", "scheduler", "weight_decay", "max_grad_norm",
    "logging_steps", "checkpoint_steps", "save", "seed", "preset",
)  # fmt: skip
"""Knobs of training that leave a step's memory as it is."""
MOST_AT_ONCE = 8
"""Rehearsals, each a process of a gigabyte."""
FEW_LAYERS = 3
"""Layers of the smaller of two models that are rehearsed in place of a deep one (``rehearsal.timeline``)."""


@dataclass(frozen=True)
class Target:
    """What is predicted for.

    Attributes:
        cuda: a GPU; else the CPU.
        fill: rows as long as ``train.max_length`` allows, in place of the data's longest; None fills those of a model
            that is not the embedded one on the embedded task, whose sums of a few characters say nothing of it.
    """

    cuda: bool
    fill: bool | None = False

    def of(self, setup: Setup) -> Target:
        """The same with ``fill`` decided for this trial."""
        if self.fill is not None:
            return self
        return replace(self, fill=setup.task.embedded and not setup.model.embedded)


@dataclass(frozen=True)
class Prediction:
    """Predicted peak memory of a trial, in bytes of live tensors.

    Attributes:
        phases: phase -> owner -> bytes at that phase's peak.
        rows: tokens of the longest row, prompt and completion; 0 where it is not known.
    """

    phases: Mapping[str, Mapping[str, float]]
    rows: int = 0

    @property
    def totals(self) -> dict[str, float]:
        """Peak of each phase."""
        return {phase: sum(owners.values()) for phase, owners in self.phases.items()}

    @property
    def phase(self) -> str:
        """The phase that sets the peak."""
        return max(self.totals, key=self.totals.__getitem__)

    @property
    def peak(self) -> float:
        """The highest of all phases."""
        return self.totals[self.phase]

    def needed(self, *, cuda: bool) -> float:
        """Bytes of the device, what is there beside tensors included."""
        return needed(self.peak) if cuda else max(map(resident, self.phases.values()))

    @property
    def owners(self) -> Mapping[str, float]:
        """Bytes by owner at the peak."""
        return self.phases[self.phase]


def predict(
    setups: Sequence[Setup], target: Target, say: Callable[[str], object] = lambda _: None
) -> list[Prediction | UserError]:
    """One for each setup, in order; an error where there is none. Equal trials are rehearsed once, and kept.

    Args:
        setups: trials.
        target: what to predict for.
        say: told what takes time.
    """
    if not setups:
        return []
    cache = cache_of(setups[0])
    asked = [inputs(setup, target.of(setup)) for setup in setups]
    keys = [identity.digest(one) for one in asked]
    found: dict[str, Prediction | UserError] = {}
    wanted: dict[str, Setup] = {}
    for key, setup in zip(keys, setups, strict=True):
        if (entry := cache.find(STAGE, key)) is not None:
            found[key] = Prediction(**cache.note(entry))
        else:
            wanted.setdefault(key, setup)
    if wanted:
        say(f"predicting the memory of {count(len(wanted), 'recipe')}; the cache keeps it")
    for key, answer in _rehearsed(wanted, target):
        if isinstance(answer, Prediction):
            note = asdict(answer)
            with suppress(UserError, OSError):  # a cache that cannot be written: it is rehearsed again next time
                cache.fetch(STAGE, key, lambda _, note=note: note, inputs=asked[keys.index(key)])
        found[key] = answer
    return [found[key] for key in keys]


def known(setup: Setup, target: Target) -> bool:
    """Whether ``predict`` would rehearse nothing."""
    return cache_of(setup).find(STAGE, identity.digest(inputs(setup, target.of(setup)))) is not None


def lighter(setup: Setup, prediction: Prediction, fits: Callable[[Prediction], bool]) -> Setup | None:
    """The trial with its base judged quantized, where the deployed base is what does not fit; None elsewhere.

    Args:
        setup: a trial.
        prediction: its own.
        fits: whether one would.
    """
    chosen = with_baseline(setup, "quantized")
    if chosen is setup or not setup.adapter.quantized or fits(prediction):
        return None
    rest = Prediction(
        {phase: owners for phase, owners in prediction.phases.items() if phase not in ("load", "baseline")}
    )
    return chosen if rest.phases and fits(rest) else None


def inputs(setup: Setup, target: Target) -> dict[str, Any]:
    """Everything that can change a prediction."""
    setup = with_baseline(setup, "deployed")
    config, data = training_config(setup), load_data(setup.task, cache_of(setup))
    train = {k: v for k, v in config.get("train", {}).items() if k not in NO_MATTER}
    algo = {k: v for k, v in config["algo"].items() if k != "beta"}
    algo |= {"reference": setup.algo.uses_reference, "shares": setup.algo.shares_reference(setup.train, data)}
    return {
        "algo": algo,
        "adapter": config["adapter"],
        "base": setup.model.recipe_digest(setup.task),
        "model": {k: v for k, v in config["model"].items() if k != "seed"},
        "train": train,
        "parallel": config.get("parallel"),
        "prompt": [config.get("prompt"), dict(setup.prompt.contents())],
        "reward": config.get("reward"),
        "content": setup.reward.contents() if setup.reward is not None else {},
        "saves": setup.train.save == "full",  # then an adapter is merged
        "eval": {
            "names": sorted(setup.eval.active),
            "judges": _judges(setup),
            "curve": bool(setup.eval.at),
            **{k: getattr(setup.eval, k) for k in _EVAL},
        },
        "data": None if target.fill else data.digest,
        "target": asdict(target),
        "code": closure.code_digest(code_of(setup)),
        "versions": identity.library_versions(),
    }


def code_of(setup: Setup) -> dict[str, Path]:
    """The code that can change a prediction."""
    entries = identity.modules_of([setup.algo, setup.adapter, setup.model, setup.task, setup.reward])
    return closure.closure(["harness.plan.rehearsed", *entries], NO_MATTER_OF_CODE)


def _judges(setup: Setup) -> dict[str, Any]:
    """What evaluators hold beside the trained model."""
    active = setup.eval.active.items()
    judges = {name: asdict(judge) for name, e in active if (judge := e.judge_model) is not None}
    merges = {"merge": names} if (names := sorted(name for name, e in active if e.merges)) else {}
    return {"compare": sorted(name for name, e in active if e.compares), **merges, **judges}


_EVAL = ("split", "batch_size", "max_length", "max_completion_length", "baseline")


def _rehearsed(wanted: Mapping[str, Setup], target: Target) -> Iterator[tuple[str, Prediction | UserError]]:
    """Rehearse each in a child of the forkserver, as many at once as there are cores; as they come."""
    waiting = list(wanted.items())
    running: dict[Any, tuple[str, Any]] = {}
    context = forkserver.context()
    try:
        while waiting or running:
            while waiting and len(running) < min(os.cpu_count() or 1, MOST_AT_ONCE):
                key, setup = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                text = json.dumps(dict(setup.plain))
                running[receiver] = (key, forkserver.start(_main, sender, text, target.of(setup), name="plan"))
                sender.close()
            ready: list[Any] = wait(list(running))
            for receiver in ready:
                key, process = running.pop(receiver)
                try:
                    answer = receiver.recv()
                except EOFError:
                    process.join()
                    answer = UserError(f"the process that rehearses ended with code {process.exitcode}")
                process.join()
                yield key, answer
    finally:
        for _, process in running.values():
            forkserver.end_group(process)


def _main(sender: Any, text: str, target: Target) -> None:
    """In the child: rehearse, and send the prediction, a ``UserError``, or a traceback."""
    import traceback

    silence(1, 2)  # library chatter; what matters is sent
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        from harness.plan.rehearsed import prediction_of

        answer: Any = prediction_of(json.loads(text), target)
    except UserError as error:
        answer = error
    except Exception as error:  # whatever a library meets on tensors without data: no prediction, and no lost sweep
        plain = json.loads(text)
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = (str(error).strip() or "no message").splitlines()[0][:300]
        place = f"{Path(where.filename).name}:{where.lineno}"
        answer = UserError(f"the rehearsal failed ({type(error).__name__} at {place}: {text})")
        if any(own_classes(plain)):
            answer = as_theirs(error, plain)
    sender.send(answer)
    sender.close()
    os._exit(0)
