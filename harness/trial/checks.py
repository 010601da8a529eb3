"""Whether the rows of a task and the rest of a trial go together. Torch-free."""

from __future__ import annotations

from harness.base.errors import UserError, UserErrors
from harness.evaluators.base import curve_split
from harness.tasks.base import TaskData
from harness.trial.assemble import Setup
from harness.trial.data import audited, cache_of, load_data


def check_data(setup: Setup) -> TaskData:
    """Load the task's rows and check the combination with the algorithm; raises ``UserErrors``."""
    data = load_data(setup.task, cache_of(setup))
    errors = [*setup.model.task_problems(setup.task), *setup.algo.problems(setup.task, data, setup.train)]
    errors += _adapter_problems(setup) if setup.algo.trains else []
    errors += setup.reward.data_problems(data) if setup.reward is not None else []
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
    if setup.algo.name == "ppo" or (setup.reward is not None and setup.reward.stages()):
        role = "a critic" if setup.algo.name == "ppo" else "a reward model"
        found.append(
            UserError(
                f"leaves {role} no base to share: off it is not the base, or it does not start there",
                key="adapter",
                value=adapter.name,
                fix="adapter=lora or dora; or algo=grpo, with reward=verifier or a reward model by reward.path",
            )
        )
    return found


def _curve_problems(setup: Setup, data: TaskData) -> list[UserError]:
    """A curve needs rows."""
    split = curve_split(data, setup.eval.split)
    if not setup.eval.at or data.eval_pairs.get(split) or data.eval_prompts.get(split):
        return []
    words = "the data has no held-out pair or prompt for a point of the curve"
    return [UserError(words, key="eval.at", value=list(setup.eval.at), fix="eval.at=[], or data that is held out")]


def _leaks(setup: Setup, data: TaskData) -> list[UserError]:
    """Held-out prompts that training shows, if they are too many."""
    if not setup.eval.active:
        return []
    found = audited(data)
    if found.leaked <= setup.eval.max_leaked:
        return []
    example = found.leaks[0]
    return [
        UserError(
            f"{found.leaked:.1%} of the held-out prompts are shown in training, such as {example.held_out[:60]!r} "
            f"({example.how}: {example.training[:60]!r}), more than eval.max_leaked={setup.eval.max_leaked}",
            key="task",
            value=type(setup.task).__name__.lower(),
            fix="remove them from the training rows, or allow them: eval.max_leaked=1",
        )
    ]
