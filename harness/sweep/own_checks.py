"""Checks of a user's own classes before the first trial: does what they give keep its contract? In a child."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base.errors import UserError
from harness.config.compose import conf_dir
from harness.config.theirs import as_theirs, is_own
from harness.models.adapters import Adapter
from harness.models.making import loaded_as_said
from harness.models.meta_model import skeleton

if TYPE_CHECKING:
    from harness.rewards.base import Reward
    from harness.tasks.base import TaskData
    from harness.trial.assemble import Setup

SMALL = 10_000_000
"""Weights up to which a model of the user's own is loaded before a sweep."""
CHEAP = ("preference", "true_reward", "behaviour")
"""Evaluators whose metrics' names are found on toy models in no time: a user's own must have others."""


def base_rows_problems(setup: Setup) -> list[UserError]:
    """What a task of the user's own gives the embedded model to learn its language from."""
    from harness.tasks.base import Task
    from harness.tasks.contract import first_wrong

    task = setup.task
    if not is_own(task) or not setup.model.embedded:
        return []
    if type(task).base_rows is Task.base_rows:
        return []
    try:
        rows: Any = task.base_rows(3)
        wrong = first_wrong(rows, ("prompt", "completion"))
    except UserError as error:
        return [error]
    except Exception as error:  # whatever the user's code raises
        return [as_theirs(error, {"task": {"_target_": _dotted(task)}})]
    if wrong is None and len(rows) == 3:
        return []
    rule = f"base_rows(3){wrong}" if wrong else f"base_rows(3) must give 3 rows, not {len(rows)}"
    fix = "as many rows as are asked for, such as {'prompt': '1+1=', 'completion': '2'}"
    return [UserError(rule, key="task", value=_dotted(task), fix=fix)]


def name_problems(setup: Setup) -> list[UserError]:
    """A recipe is known by the names of its parts: two algorithms of one name would be taken for the same trial."""
    found = _class_problems(setup)
    if found:
        return found
    for group, part in (("algo", setup.algo), ("adapter", setup.adapter)):
        shipped = {path.stem for path in (conf_dir() / group).glob("*.yaml")}
        if is_own(part) and part.name in shipped:
            rule = f"has the name {part.name!r}, which one of harness's own has"
            found.append(UserError(rule, key=group, value=_dotted(part), fix="name: ClassVar[str] = 'another'"))
    return found


def _class_problems(setup: Setup) -> list[UserError]:
    """What a class must say of itself, and says wrongly or not at all."""
    families, kinds = ("offline", "online", "none"), ("pairs", "unpaired", "prompts", "nothing")
    wanted: dict[str, tuple[Any, dict[str, tuple[str, ...] | None]]] = {
        "algo": (setup.algo, {"name": None, "family": families, "consumes": kinds}),
        "adapter": (setup.adapter, {"name": None, "preset": None}),
    }
    found = []
    for group, (part, names) in wanted.items():
        for name, choices in names.items() if is_own(part) else ():
            value = getattr(part, name, None)
            if isinstance(value, str) and (choices is None or value in choices):
                continue
            rule = f"{name} must be {'a text' if choices is None else 'one of ' + ', '.join(choices)}, not {value!r}"
            fix = f"{name}: ClassVar[str] = {choices[0] if choices else 'mine' if name == 'name' else 'lora'!r}"
            found.append(UserError(rule, key=group, value=_dotted(part), fix=fix))
    return found


def own_rewards(reward: Reward | None) -> list[Reward]:
    """Rewards of the user's own that score text by themselves, without a model of the trial's."""
    from harness.rewards.base import Reward
    from harness.rewards.composite import Composite

    if isinstance(reward, Composite):
        return [own for member in reward.members().values() for own in own_rewards(member)]
    return [reward] if reward is not None and is_own(reward) and type(reward).open is Reward.open else []


def reward_problems(setup: Setup, data: TaskData) -> list[UserError]:
    """What a reward of the user's own makes of two completions: a good one where the rows have it, and nonsense."""
    from harness.rewards.scoring import checked
    from harness.tasks.contract import swapped

    rows = [row for row in data.train_prompts[:1] for _ in range(3)]
    texts = [str(rows[0].get("answer", "")), "a completion to try the reward with – „é“", ""] if rows else []
    for reward in own_rewards(setup.reward) if rows else ():
        if swapped(reward):
            rule, fix = "takes rows first, and then completions", "def __call__(self, rows, completions)"
            return [UserError(rule, key="reward", value=_dotted(reward), fix=fix)]
        try:
            checked(
                reward,
                lambda rows, completions, _, score=reward: score(rows, completions),
                rows,
                texts,
                [True, True, False],
            )
        except UserError as error:
            return [error]
    return []


def own_evaluators(setup: Setup) -> dict[str, Any]:
    """Evaluators of the user's own."""
    return {n: e for n, e in setup.eval.active.items() if is_own(e)}


def evaluator_problems(setup: Setup, data: TaskData) -> list[UserError]:
    """What evaluators of the user's own say of toy models and the first rows of the data."""
    asked = {n: e for n, e in own_evaluators(setup).items() if e.not_applicable(setup.task, data) is None}
    if not asked:
        return []
    from harness.trial.behaviour import context_on_toys, fixture_rows, of_evaluator

    found: list[UserError] = []
    rows = fixture_rows(data, setup.eval.split)

    def toys() -> Any:
        return context_on_toys(setup.task, rows, chat=False)

    shipped = {n: e for n, e in setup.eval.active.items() if n in CHEAP and n not in asked}
    taken = {metric: n for n, e in shipped.items() for metric in of_evaluator(e, toys(), n)}
    for name, evaluator in asked.items():
        try:
            taken |= dict.fromkeys(of_evaluator(evaluator, toys(), name, taken), name)
        except UserError as error:
            found.append(error)
        except Exception as error:  # whatever the user's code raises
            node = {"eval": {"evaluators": {name: {"_target_": _dotted(evaluator)}}}}
            found.append(as_theirs(error, node))
    return found


def model_problems(setup: Setup, config: Any, source: Path | None) -> list[UserError]:
    """A small model of the user's own is loaded: what it gives must be what ``configuration()`` says."""
    own = setup.model
    if not is_own(own) or config is None:
        return []
    import torch

    digest = own.recipe_digest(setup.task)
    if not isinstance(digest, str):
        rule = f"recipe_digest() gives a text by which what it loads is known, not {digest!r}"
        return [UserError(rule, key="model", value=type(own).__name__, fix="return a str, such as a hash of its files")]
    size = sum(p.numel() for p in skeleton(config, own).parameters())
    if size > SMALL:
        return []
    try:
        made = [own.load(source, dtype=torch.float32, device="cpu", quantization=None) for _ in range(2)]
        loaded_as_said(made[0], config)
        if any(not torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in made), strict=True)):
            rule = "load() gives other weights each time, and every process of a trial calls it"
            fix = "seed what it draws, within load(): torch.manual_seed(self.seed)"
            return [UserError(rule, key="model", value=_dotted(own), fix=fix)]
    except UserError as error:
        return [error]
    except Exception as error:  # whatever the user's code raises
        return [as_theirs(error, {"model": {"_target_": _dotted(own)}})]
    return []


def _dotted(component: Any) -> str:
    return f"{type(component).__module__}.{type(component).__qualname__}"


def adapter_problems(adapter: Adapter) -> list[UserError]:
    """What an adapter of the user's own gives as peft's configuration."""
    if not is_own(adapter):
        return []
    from peft import PeftConfig

    config: Any = adapter.peft_config()
    if isinstance(config, PeftConfig):
        odd = {"task_type": config.task_type not in (None, "CAUSAL_LM"), "inference_mode": config.inference_mode}
        wrong = next((name for name, is_odd in odd.items() if is_odd), None)
        if wrong is None:
            return []
        rule = f"peft_config() has {wrong}={getattr(config, wrong)}, and a policy is a causal model that is trained"
        fix = "task_type='CAUSAL_LM', and leave inference_mode out"
        return [UserError(rule, key="adapter", value=_dotted(adapter), fix=fix)]
    if config is None and adapter.trains_base:
        return []
    rule = f"peft_config() gives one of peft's configurations, not {config!r:.80}"
    fix = "return it: return LoraConfig(...); None is for an adapter that trains the base's own weights"
    return [UserError(rule, key="adapter", value=_dotted(adapter), fix=fix)]
