"""A learned reward: the reward-model stage of the trial, or any sequence-classification model."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from harness.base.errors import UserError
from harness.base.records import unless_default
from harness.config import identity
from harness.models.adapters import Adapter, Full
from harness.rewards.base import Desk, Reward, ScoreFunction
from harness.tasks.base import Row, Task, TaskData

NAME = "reward"
"""Of the first reward model's adapter on a shared base; those of others are numbered."""


@dataclass(frozen=True)
class RewardModelSpec:
    """Recipe of the reward-model stage: Bradley-Terry training on the task's pairs.

    Attributes:
        adapter: what is trained; its score head always is.
        learning_rate, steps, batch_size: of AdamW; ``batch_size`` counts pairs.
        seed: adapter initialisation and data order.
        contrast: pairs added for each given one, whose loser is the chosen completion of another prompt.
        max_length: tokens of prompt and completion; longer pairs are left out.
        pairs: of the task's that it learns from, drawn by ``seed``; a larger number draws the same and more. None: all.
    """

    adapter: Adapter
    learning_rate: float
    steps: int
    batch_size: int
    contrast: float
    seed: int
    max_length: int
    pairs: int | None = None

    def drawn(self, pairs: Sequence[Row]) -> Sequence[Row]:
        """The pairs that the stage learns from."""
        if self.pairs is None:
            return pairs
        order = list(range(len(pairs)))
        random.Random(f"pairs-{self.seed}").shuffle(order)
        return [pairs[i] for i in order[: self.pairs]]

    @property
    def key(self) -> str:
        """Identity of the recipe (not of what it is trained on)."""
        return identity.digest({"adapter": type(self.adapter).__qualname__, **asdict(self)})


@dataclass(frozen=True)
class ModelReward(Reward):
    """Scores by a reward model, shifted and scaled to mean 0 and deviation 1 over the training pairs.

    Attributes:
        path: a sequence-classification model with one label, by directory or hub id; null trains one from the
            base on the task's pairs (a stage, shared by every trial that needs it).
        adapter: of that stage. ``same`` is the trial's own, so that LoRA and QLoRA trials hold one base for
            policy, critic and reward model; ``full`` trains and holds separate weights.
        presets: hyper-parameters of the stage per ``train.preset`` and adapter.
        learning_rate, steps, batch_size, contrast: null takes the preset's. ``contrast`` is the number of pairs added
            for each given one, in which the chosen completion beats one that was chosen for another prompt: they
            teach to judge the answer to this prompt and not the looks of an answer (arXiv 2409.13156).
        pairs: of the task's pairs that the stage learns from, drawn by ``seed``; null: all. Nested: 200 are the 50 and
            150 more.
        seed: of the stage; a constant, so that the seeds of a trial share one reward model.
        max_length: tokens the reward model reads; ``null`` in YAML takes ``train.max_length``.
        score_batch_size: completions per forward pass.
        normalize: shift and scale as above; a model by ``path`` is taken as it is.
        trust_remote_code: run code that ships with a model by ``path``.
    """

    path: str | None = None
    adapter: Literal["same", "full"] = "same"
    presets: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict, metadata={"told": False})
    learning_rate: Annotated[float, Gt(0)] | None = None
    steps: Annotated[int, Gt(0)] | None = None
    batch_size: Annotated[int, Gt(0)] | None = None
    contrast: Annotated[float, Ge(0)] | None = None
    pairs: Annotated[int, Gt(0)] | None = unless_default(None)
    seed: Annotated[int, Ge(0)] = 0
    max_length: Annotated[int, Gt(1)] = 1024
    score_batch_size: Annotated[int, Gt(0)] = 64
    normalize: bool = True
    trust_remote_code: bool = False
    spec: RewardModelSpec | None = None

    def problems(self, task: Task) -> list[UserError]:
        """A path that looks local must exist."""
        if self.path and self.path.startswith(("/", "./", "../", "~")):
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

    def data_problems(self, data: TaskData) -> list[UserError]:
        """The stage learns from pairs."""
        if self.path is not None:
            return []
        if self.pairs is not None and self.pairs > len(data.train_pairs) > 0:
            words = f"the data has {len(data.train_pairs):,} training pairs"
            return [UserError(words, key="reward.pairs", value=self.pairs, fix=f"at most {len(data.train_pairs)}")]
        if data.train_pairs:
            return []
        return [
            UserError(
                "the reward-model stage learns from pairs (chosen, rejected), and this data set has none",
                key="reward",
                value="model",
                fix="name a trained one: reward.path=..., or use reward=verifier where the task has a rule",
            )
        ]

    def bind(self, task: Task, adapter: Adapter, preset: str) -> ModelReward:
        """Fill what is null from the stage's preset."""
        if self.path is not None:
            return replace(self, presets={})
        trained = adapter if self.adapter == "same" else Full()
        column = self.presets.get(preset, {}).get(trained.preset, {})
        chosen: dict[str, Any] = {
            k: column.get(k) if getattr(self, k) is None else getattr(self, k)
            for k in ("learning_rate", "steps", "batch_size", "contrast")
        }
        absent = [k for k, v in chosen.items() if v is None]
        if absent:
            raise UserError(
                f"the preset {preset!r} gives no value for adapter {trained.preset}",
                key=f"reward.{absent[0]}",
                value=None,
                fix=f"set it, or add it to reward.presets.{preset}.{trained.preset}",
            )
        spec = RewardModelSpec(adapter=trained, seed=self.seed, max_length=self.max_length, pairs=self.pairs, **chosen)
        return replace(self, presets={}, spec=spec, **chosen)

    def contents(self) -> Mapping[str, str]:
        """The model's, where one is named."""
        return {} if self.path is None else {"path": identity.model_content(self.path)}

    def stages(self) -> tuple[RewardModelSpec, ...]:
        """The stage, unless a path is named."""
        return () if self.spec is None else (self.spec,)

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float]:
        """Not without its model."""
        raise TypeError("open() the reward first: it needs its model")

    def open(self, desk: Desk) -> ScoreFunction:
        """Load the model, or put its adapter onto the policy's base."""
        if self.spec is None:
            shell, tokenizer, turn = _by_path(self, desk)
            self._share_prompts(desk, shell)
            return self._scorer(desk, shell, tokenizer, turn, mean=0.0, deviation=1.0)
        folder = desk.folders[self.spec.key]
        note = _note(folder)
        if self.spec.adapter.peft_config() is not None:
            shell, turn = _on_shared_base(desk, folder)
        else:
            shell, turn = _separate(desk, folder)
            self._share_prompts(desk, shell)
        mean, deviation = (note["mean"], note["deviation"]) if self.normalize else (0.0, 1.0)
        return self._scorer(desk, shell, desk.tokenizer, turn, mean=mean, deviation=deviation)

    def without_weights(self) -> ModelReward:
        """A reward model of the same shape."""
        return _Weightless(**{f.name: getattr(self, f.name) for f in fields(self)})

    def _share_prompts(self, desk: Desk, shell: Any) -> None:
        """Have a model of its own read a prompt once for all of its completions, where the policy does."""
        from harness.models import prefixes

        if desk.policy is None or prefixes.of(desk.policy) is not None:
            prefixes.ready(shell, "auto", longest=self.max_length, device=desk.device, precision=desk.precision)

    def _scorer(
        self, desk: Desk, shell: Any, tokenizer: Any, turn: Any, *, mean: float, deviation: float
    ) -> ScoreFunction:
        from harness.models.classifier import score_sequences, sequences_of

        def score(rows: Sequence[Row], completions: Sequence[str], ended: Sequence[bool]) -> list[float]:
            whole = [{"prompt": r["prompt"], "completion": c} for r, c in zip(rows, completions, strict=True)]
            raw = score_sequences(
                shell,
                sequences_of(tokenizer, desk.rows(whole), ended=ended, longest=self.max_length),
                pad=tokenizer.pad_token_id,
                batch_size=self.score_batch_size,
                device=desk.device,
                precision=desk.precision,
                turn=turn,
            )
            return ((raw - mean) / deviation).tolist()

        return score


class _Weightless(ModelReward):
    """Holds a model of the right shape, for tensors without data."""

    def open(self, desk: Desk) -> ScoreFunction:
        """A model from a configuration alone."""
        if self.spec is None:
            return self._scorer(desk, *_by_path(self, desk, weights=False), mean=0.0, deviation=1.0)
        config = self.spec.adapter.peft_config()
        shell, turn = _copy_of_policy(desk) if config is None else _beside_policy(desk, config)[:2]
        return self._scorer(desk, shell, desk.tokenizer, turn, mean=0.0, deviation=1.0)


def _copy_of_policy(desk: Desk) -> tuple[Any, Any]:
    """What ``_separate`` would load, from the policy's own shape."""
    import copy
    from contextlib import nullcontext

    from harness.models.classifier import with_score

    policy = desk.policy.get_base_model() if hasattr(desk.policy, "get_base_model") else desk.policy
    shell = with_score(copy.deepcopy(policy).to(desk.dtype)).eval().requires_grad_(False)
    desk.roles.setdefault("reward", []).extend(shell.parameters())
    return shell, nullcontext


def _note(folder: Path) -> Mapping[str, float]:
    import json

    from harness.store.cache import MARK

    return json.loads((folder / MARK).read_text())["note"]


def _on_shared_base(desk: Desk, folder: Path) -> tuple[Any, Any]:
    """The stage's adapter on the policy's base, and the turn in which it is active."""
    from peft import PeftConfig, set_peft_model_state_dict
    from safetensors.torch import load_file

    config: Any = PeftConfig.from_pretrained(str(folder))
    config.modules_to_save, config.task_type = None, "CAUSAL_LM"
    shell, turn, name = _beside_policy(desk, config)
    weights = load_file(folder / "adapter_model.safetensors", device=desk.device)
    head = next(weights.pop(name) for name in list(weights) if name.endswith("score.weight"))
    set_peft_model_state_dict(desk.policy, weights, adapter_name=name)
    shell.score.weight.data.copy_(head)
    return shell, turn


def _beside_policy(desk: Desk, config: Any) -> tuple[Any, Any, str]:
    """A fresh adapter of the shape ``config`` on the policy's base: score head, the turn in which it acts, its name."""
    from harness.models.classifier import acting, undropped, with_score

    policy, there = desk.policy, [name for name in desk.policy.peft_config if name.startswith(NAME)]
    name = f"{NAME}_{len(there)}" if there else NAME
    policy.add_adapter(name, undropped(config))
    policy.set_adapter("default")
    shell = with_score(policy.get_base_model())
    own = [p for n, p in policy.named_parameters() if f".{name}." in n]
    desk.roles.setdefault("reward", []).extend([*own, shell.score.weight])
    return shell, partial(acting, policy, name), name


def _separate(desk: Desk, folder: Path) -> tuple[Any, Any]:
    """The stage's own weights."""
    from contextlib import nullcontext

    from transformers import AutoModelForSequenceClassification

    from harness.models.classifier import in_32_bits, load_head

    shell = AutoModelForSequenceClassification.from_pretrained(str(folder), dtype=desk.dtype).to(desk.device)
    load_head(in_32_bits(shell), folder).eval().requires_grad_(False)
    desk.roles.setdefault("reward", []).extend(shell.parameters())
    return shell, nullcontext


def _by_path(reward: ModelReward, desk: Desk, *, weights: bool = True) -> tuple[Any, Any, Any]:
    """A model of the user's with its own tokenizer; its shape alone without ``weights``."""
    from contextlib import nullcontext

    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    from harness.models.classifier import in_32_bits

    assert reward.path is not None
    name = str(Path(reward.path).expanduser()) if reward.path.startswith("~") else reward.path
    options = {"trust_remote_code": reward.trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        if weights:
            shell = AutoModelForSequenceClassification.from_pretrained(name, dtype=desk.dtype, **options)
        else:
            config = AutoConfig.from_pretrained(name, **options)
            shell = AutoModelForSequenceClassification.from_config(config, dtype=desk.dtype, **options)
        shell = shell.to(desk.device)
    except (OSError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the reward model cannot be loaded ({first})", key="reward.path", value=reward.path) from error
    if shell.config.num_labels != 1:
        raise UserError(
            f"the model has {shell.config.num_labels} labels, and a reward model has one",
            key="reward.path",
            value=reward.path,
            fix="name a model trained as a reward model",
        )
    if tokenizer.pad_token_id is None:
        raise UserError("its tokenizer has no pad token", key="reward.path", value=reward.path, fix="give it one")
    shell.config.pad_token_id = tokenizer.pad_token_id
    in_32_bits(shell).eval().requires_grad_(False)
    desk.roles.setdefault("reward", []).extend(shell.parameters())
    return shell, tokenizer, nullcontext
