"""Rewards that a classification model gives: one that a stage trains on the base, or one by path."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge, Gt

from harness.base.errors import UserError
from harness.base.records import UNTOLD, unless_default
from harness.config import identity
from harness.models.adapters import Adapter, Full
from harness.rewards.base import Desk, Reward
from harness.tasks.base import Row, Task

NAME = "reward"
"""Of the first reward model's adapter on a shared base; those of others are numbered."""


@dataclass(frozen=True)
class Recipe:
    """Recipe of a stage that trains such a model.

    Attributes:
        adapter: what is trained; its head always is.
        learning_rate, steps, batch_size: of AdamW; ``batch_size`` counts rows.
        seed: adapter initialisation and data order.
        max_length: tokens of prompt and completion; longer rows are left out.
    """

    stage: ClassVar[str]
    """Name of the stage, and of its module."""

    adapter: Adapter
    learning_rate: float
    steps: int
    batch_size: int
    seed: int
    max_length: int

    @property
    def key(self) -> str:
        """Identity of the recipe (not of what it is trained on)."""
        return identity.digest({"adapter": type(self.adapter).__qualname__, **asdict(self)})


@dataclass(frozen=True)
class Held:
    """A model as a trial holds it.

    Attributes:
        shell: the classification model.
        tokenizer: its own.
        turn: within it, forward passes are the model's (an adapter on a shared base is active).
    """

    shell: Any
    tokenizer: Any
    turn: Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class LearnedReward(Reward):
    """Scores by a model; subclasses say how, and what it learns from.

    Attributes:
        path: a classification model by directory or hub id; null trains one from the base (a stage, shared by every
            trial that needs it).
        adapter: of that stage. ``same`` is the trial's own, so that LoRA and QLoRA trials hold one base for
            policy, critic and reward model; ``full`` trains and holds separate weights.
        presets: hyper-parameters of the stage per ``train.preset`` and adapter.
        learning_rate, steps, batch_size: null takes the preset's.
        seed: of the stage; a constant, so that the seeds of a trial share one reward model.
        max_length: tokens the reward model reads; ``null`` in YAML takes ``train.max_length``.
        score_batch_size: completions per forward pass.
        trust_remote_code: run code that ships with a model by ``path``.
        revision: hub revision of such a model.
    """

    each_token: ClassVar[bool] = False
    """Whether the model is read at several tokens of a sequence."""
    labels: ClassVar[tuple[int, ...]] = (1,)
    """How many a model by ``path`` may have."""

    path: str | None = None
    adapter: Literal["same", "full"] = "same"
    presets: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict, metadata=UNTOLD)
    learning_rate: Annotated[float, Gt(0)] | None = None
    steps: Annotated[int, Gt(0)] | None = None
    batch_size: Annotated[int, Gt(0)] | None = None
    seed: Annotated[int, Ge(0)] = 0
    max_length: Annotated[int, Gt(1)] = 1024
    score_batch_size: Annotated[int, Gt(0)] = 64
    trust_remote_code: bool = False
    revision: str | None = unless_default(None)
    spec: Recipe | None = None

    def problems(self, task: Task) -> list[UserError]:
        """A path that looks local must exist."""
        if self.path and self.path.startswith(identity.LOOKS_LOCAL):
            folder = Path(self.path).expanduser()
            if not (folder / "config.json").is_file():
                return [
                    UserError(
                        "no transformers model is there (no config.json)",
                        key="reward.path",
                        value=self.path,
                        fix="name the folder that save_pretrained wrote",
                    )
                ]
        return []

    def tuned(self) -> tuple[str, ...]:
        """Fields that presets fill where they are null."""
        return ("learning_rate", "steps", "batch_size")

    @abstractmethod
    def recipe(self, task: Task, **options: Any) -> Recipe:
        """Of the stage, given what is common to all; ``options`` also has what ``tuned`` names beyond that."""

    def bind(self, task: Task, adapter: Adapter, preset: str) -> Self:
        """Fill what is null from the stage's preset."""
        if self.path is not None:
            return replace(self, presets={})
        trained = adapter if self.adapter == "same" else Full()
        column = self.presets.get(preset, {}).get(trained.preset, {})
        chosen: dict[str, Any] = {
            k: column.get(k) if getattr(self, k) is None else getattr(self, k) for k in self.tuned()
        }
        absent = [k for k, v in chosen.items() if v is None]
        if absent:
            raise UserError(
                f"the preset {preset!r} gives no value for adapter {trained.preset}",
                key=f"reward.{absent[0]}",
                value=None,
                fix=f"set it, or add it to reward.presets.{preset}.{trained.preset}",
            )
        spec = self.recipe(task, adapter=trained, seed=self.seed, max_length=self.max_length, **chosen)
        return replace(self, presets={}, spec=spec, **chosen)

    def contents(self) -> Mapping[str, str]:
        """The model's, where one is named."""
        return (
            {} if self.path is None else {"path": identity.pinned_content(self.path, self.revision, key="reward.path")}
        )

    def stages(self) -> tuple[Recipe, ...]:
        """The stage, unless a path is named."""
        return () if self.spec is None else (self.spec,)

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float]:
        """Not without its model."""
        raise TypeError("open() the reward first: it needs its model")

    def held(self, desk: Desk) -> Held:
        """Load the model, or put its adapter onto the policy's base."""
        if self.spec is not None and self.spec.adapter.peft_config() is not None:
            return _on_shared_base(desk, desk.folders[self.spec.key], self.each_token)
        if self.spec is None:
            held = _by_path(self, desk)
        else:
            held = _separate(desk, desk.folders[self.spec.key], self.each_token)
        self._share_prompts(desk, held.shell)
        return held

    def shape(self, desk: Desk) -> Held:
        """A model of the right shape, from a configuration alone: for tensors without data."""
        if self.spec is None:
            return _by_path(self, desk, weights=False)
        config = self.spec.adapter.peft_config()
        return (
            _copy_of_policy(desk, self.each_token)
            if config is None
            else _beside_policy(desk, config, self.each_token)[0]
        )

    def _share_prompts(self, desk: Desk, shell: Any) -> None:
        """Have a model of its own read a prompt once for all of its completions, where the policy does."""
        from harness.models import prefixes

        if desk.policy is None or prefixes.of(desk.policy) is not None:
            prefixes.ready(shell, "auto", longest=self.max_length, device=desk.device, precision=desk.precision)


def _copy_of_policy(desk: Desk, each_token: bool) -> Held:
    """What ``_separate`` would load, from the policy's own shape."""
    import copy
    from contextlib import nullcontext

    from harness.models.classifier import with_score

    policy = desk.policy.get_base_model() if hasattr(desk.policy, "get_base_model") else desk.policy
    shell = with_score(copy.deepcopy(policy).to(desk.dtype), each_token=each_token).eval().requires_grad_(False)
    desk.roles.setdefault("reward", []).extend(shell.parameters())
    return Held(shell, desk.tokenizer, nullcontext)


def _on_shared_base(desk: Desk, folder: Path, each_token: bool) -> Held:
    """The stage's adapter on the policy's base, and the turn in which it is active."""
    from peft import PeftConfig, set_peft_model_state_dict
    from safetensors.torch import load_file

    from harness.models.classifier import head_name

    config: Any = PeftConfig.from_pretrained(str(folder))
    config.modules_to_save, config.task_type = None, "CAUSAL_LM"
    held, name = _beside_policy(desk, config, each_token)
    weights = load_file(folder / "adapter_model.safetensors", device=desk.device)
    head = getattr(held.shell, head_name(held.shell))
    for part, parameter in head.named_parameters():
        ending = f"{head_name(held.shell)}.{part}"
        parameter.data.copy_(next(weights.pop(n) for n in list(weights) if n.endswith(ending)))
    set_peft_model_state_dict(desk.policy, weights, adapter_name=name)
    return held


def _beside_policy(desk: Desk, config: Any, each_token: bool) -> tuple[Held, str]:
    """A fresh adapter of the shape ``config`` on the policy's base under a head, and the adapter's name."""
    from harness.models.classifier import acting, head_name, undropped, with_score

    policy, there = desk.policy, [name for name in desk.policy.peft_config if name.startswith(NAME)]
    name = f"{NAME}_{len(there)}" if there else NAME
    policy.add_adapter(name, undropped(config))
    policy.set_adapter("default")
    shell = with_score(policy.get_base_model(), each_token=each_token)
    own = [p for n, p in policy.named_parameters() if f".{name}." in n]
    desk.roles.setdefault("reward", []).extend([*own, *getattr(shell, head_name(shell)).parameters()])
    return Held(shell, desk.tokenizer, partial(acting, policy, name)), name


def _separate(desk: Desk, folder: Path, each_token: bool) -> Held:
    """The stage's own weights."""
    from contextlib import nullcontext

    from harness.models.classifier import in_32_bits, load_head

    shell = _auto(each_token).from_pretrained(str(folder), dtype=desk.dtype).to(desk.device)
    load_head(in_32_bits(shell), folder).eval().requires_grad_(False)
    desk.roles.setdefault("reward", []).extend(shell.parameters())
    return Held(shell, desk.tokenizer, nullcontext)


def _auto(each_token: bool) -> Any:
    """The class of transformers that loads the model."""
    import transformers

    if each_token:
        return transformers.AutoModelForTokenClassification
    return transformers.AutoModelForSequenceClassification


def _by_path(reward: LearnedReward, desk: Desk, *, weights: bool = True) -> Held:
    """A model of the user's with its own tokenizer; its shape alone without ``weights``."""
    from contextlib import nullcontext

    from transformers import AutoConfig, AutoTokenizer

    from harness.models.classifier import in_32_bits
    from harness.models.loading import unlike

    assert reward.path is not None
    name = str(Path(reward.path).expanduser()) if reward.path.startswith("~") else reward.path
    revision = identity.pinned(reward.path, reward.revision, key="reward.path")
    options: dict[str, Any] = {"trust_remote_code": reward.trust_remote_code, "revision": revision}
    found: Mapping[str, Any] = {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        if weights:
            report = {"output_loading_info": True, "ignore_mismatched_sizes": True}
            shell, found = _auto(reward.each_token).from_pretrained(name, dtype=desk.dtype, **report, **options)
        else:
            config = AutoConfig.from_pretrained(name, **options)
            code = {"trust_remote_code": reward.trust_remote_code}
            shell = _auto(reward.each_token).from_config(config, dtype=desk.dtype, **code)
        shell = shell.to(desk.device)
    except (OSError, ValueError, RuntimeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the reward model cannot be loaded ({first})", key="reward.path", value=reward.path) from error
    kind = "process reward model" if reward.each_token else "reward model"
    if (wrong := unlike({name: value for name, value in found.items() if name != "unexpected_keys"})) is not None:
        rule, fix = f"{wrong}: it would score by chance", f"whole weights of a trained {kind}, its head among them"
        raise UserError(rule, key="reward.path", value=reward.path, fix=fix)
    if shell.config.num_labels not in reward.labels:
        allowed = " or ".join({1: "one", 2: "two"}[n] for n in reward.labels)
        raise UserError(
            f"the model has {shell.config.num_labels} labels, and a {kind} has {allowed}",
            key="reward.path",
            value=reward.path,
            fix=f"name a model trained as a {kind}",
        )
    if tokenizer.pad_token_id is None:
        raise UserError("its tokenizer has no pad token", key="reward.path", value=reward.path, fix="give it one")
    shell.config.pad_token_id = tokenizer.pad_token_id
    in_32_bits(shell).eval().requires_grad_(False)
    desk.roles.setdefault("reward", []).extend(shell.parameters())
    return Held(shell, tokenizer, nullcontext)
