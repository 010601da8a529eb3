"""Whether the rows of a task and the rest of a trial go together. Torch-free."""

from __future__ import annotations

from typing import Any

from harness.base.errors import UserError, UserErrors
from harness.evaluators.base import curve_split
from harness.models.loading import attention_problem
from harness.tasks.base import Task, TaskData, prompt_key
from harness.trial.assemble import Setup
from harness.trial.data import audited, cache_of, load_data, load_replay, shown_in_training


def check_data(setup: Setup) -> TaskData:
    """Load the task's rows and check the combination with the algorithm; raises ``UserErrors``."""
    data = load_data(setup.task, cache_of(setup))
    errors = [*filter(None, [attention_problem(setup.model.attention)]), *setup.model.task_problems(setup.task)]
    errors += _told("algo", setup.algo, setup.algo.problems(setup.task, data, setup.train))
    if setup.algo.trains:
        errors += _adapter_problems(setup)
        errors += setup.train.replay.problems(algo=setup.algo.name, family=setup.algo.family) or _replay_problems(setup)
    if setup.reward is not None:
        errors += _told("reward", setup.reward, setup.reward.data_problems(data))
    for name, evaluator in setup.eval.active.items():
        reason = evaluator.not_applicable(setup.task, data)
        if reason is None and setup.eval.split not in {*data.eval_pairs, *data.eval_prompts}:
            errors.append(
                UserError(
                    f"the data has no such split, which {name} needs",
                    key="eval.split",
                    value=setup.eval.split,
                )
            )
    errors += _curve_problems(setup, data)
    errors += _leaks(setup, data)
    if errors:
        raise UserErrors(errors)
    return data


def _told(group: str, part: object, found: Any) -> list[UserError]:
    """What a component says is wrong; one of a user's own may say anything."""
    if isinstance(found, list):
        return found
    name = f"{type(part).__module__}.{type(part).__qualname__}"
    rule = f"its problems() and data_problems() give lists of errors, not {type(found).__name__}"
    return [UserError(rule, key=group, value=name, fix="return [] where nothing is wrong")]


def same_rows(setup: Setup, data: TaskData, digest: str | None) -> None:
    """The rows of a trial are read in several processes, and must be those that it was planned with.

    Raises:
        UserError: they are others.
    """
    if digest is None or data.digest == digest:
        return
    name = f"{type(setup.task).__module__}.{type(setup.task).__qualname__}"
    rule = "gives other rows than it gave when the trial was planned: held-out rows of one are training rows of another"
    fix = "seed what load() draws (random.Random(self.seed), no set's order); if a file was changed, start again"
    raise UserError(rule, key="task", value=name, fix=fix)


def _adapter_problems(setup: Setup) -> list[UserError]:
    """Its own, and roles that would need a base that it does not leave them."""
    adapter, found = setup.adapter, setup.adapter.problems(setup.train)
    if adapter.shares_base or adapter.peft_config() is None:
        return found
    if adapter.off_is_base and setup.algo.family == "online":
        words = f"{setup.algo.name} samples prompts of unlike lengths together, which virtual tokens do not allow"
        return [
            *found,
            UserError(words, key="adapter", value=adapter.name, fix="adapter=lora, or an offline algorithm"),
        ]
    if setup.reward is not None and any(stage.adapter == adapter for stage in setup.reward.stages()):
        found.append(
            UserError(
                "leaves a reward model no base to share: off it is not the base",
                key="adapter",
                value=adapter.name,
                fix="reward.adapter=full, adapter=lora, or a reward model by reward.path",
            )
        )
    return found


def _replay_problems(setup: Setup) -> list[UserError]:
    """The rows that are replayed must be there."""
    try:
        load_replay(setup)
    except UserErrors as errors:
        return errors.errors
    except UserError as error:
        return [error]
    return []


def ranks_by(task: Task, data: TaskData, split: str) -> str | None:
    """What of a point of the curve says which policy is better; None where nothing does."""
    if task.has_reward and data.eval_prompts.get(split):
        return "true_reward"
    return "preference_accuracy" if data.eval_pairs.get(split) else None


def _curve_problems(setup: Setup, data: TaskData) -> list[UserError]:
    """A curve needs rows; to choose by it, they must say which policy is better, and be none that judge it."""
    split = curve_split(data, setup.eval.split)
    if not setup.eval.at:
        words = "best-of-n stands beside a curve, and there is none"
        wanted = setup.eval.best_of
        return [UserError(words, key="eval.best_of", value=wanted, fix="eval.at=[0.25,0.5]")] if wanted else []
    if not data.eval_pairs.get(split) and not data.eval_prompts.get(split):
        words = "the data has no held-out pair or prompt for a point of the curve"
        return [UserError(words, key="eval.at", value=list(setup.eval.at), fix="eval.at=[], or data that is held out")]
    if setup.train.keep == "last":
        return []
    words = None
    if split == setup.eval.split:
        words = "chooses the policy by a validation split, and the data has none of its own"
    elif ranks_by(setup.task, data, split) is None:
        words = "the validation split has no pairs, and the task has no rule that scores completions of its prompts"
    elif shared := _prompts_of(data, split) & _prompts_of(data, setup.eval.split):
        words = (
            f"{len(shared):,} prompts of the validation split are in the {setup.eval.split} split too, such as "
            f"{min(shared)[:60]!r}: the policy would be judged by rows that it was chosen by"
        )
    fix = "train.keep=last, or more held-out prompts, half of which are for validation"
    return [] if words is None else [UserError(words, key="train.keep", value="best", fix=fix)]


def _prompts_of(data: TaskData, split: str) -> set[str]:
    rows = (*data.eval_pairs.get(split, ()), *data.eval_prompts.get(split, ()))
    return {prompt_key(row["prompt"]) for row in rows}


def _leaks(setup: Setup, data: TaskData) -> list[UserError]:
    """Held-out prompts, and those of evaluators' own files, that training shows, if they are too many."""
    if not setup.eval.active:
        return []
    most, errors, found = setup.eval.max_leaked, [], audited(data)
    if found.leaked > most:
        example = found.leaks[0]
        shown = (example.how, example.held_out, example.training)
        errors.append(
            _leaked("of the held-out prompts", found.leaked, shown, most, "task", type(setup.task).__name__.lower())
        )
    for name, evaluator in setup.eval.active.items():
        asked = list(dict.fromkeys(evaluator.asks()))
        shows = shown_in_training(data, asked) if asked else {}
        if len(shows) > most * len(asked):
            key, path = f"eval.evaluators.{name}.path", getattr(evaluator, "path", None)
            share, example = len(shows) / len(asked), next(iter(shows.values()))
            errors.append(_leaked("of the prompts of its file", share, example, most, key, path))
    return errors


def _leaked(which: str, share: float, example: tuple[str, str, str], most: float, key: str, value: object) -> UserError:
    how, held, training = example
    rule = (
        f"{share:.1%} {which} are shown in training, such as {held[:60]!r} ({how}: {training[:60]!r}), "
        f"more than eval.max_leaked={most}"
    )
    return UserError(
        rule, key=key, value=value, fix="remove them from the training rows, or allow them: eval.max_leaked=1"
    )
