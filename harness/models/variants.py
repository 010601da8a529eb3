"""Variants of LoRA under names of their own, and adapters that are no LoRA. Import-light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Gt, Le

from harness.base.errors import UserError
from harness.models.adapters import Adapter, LoRA

if TYPE_CHECKING:
    from peft import PeftConfig

    from harness.config.train import Train


@dataclass(frozen=True)
class RsLoRA(LoRA):
    """LoRA scaled by alpha / sqrt(r) (Kalajdzievski 2023, arXiv 2312.03732), with a fixed alpha."""

    name: ClassVar[str] = "rslora"

    rslora: bool = True
    alpha: Annotated[float, Gt(0)] | None = 16.0


@dataclass(frozen=True)
class DoRA(LoRA):
    """Weight-decomposed LoRA (Liu et al. 2024, arXiv 2402.09353): lengths of columns are learned apart."""

    name: ClassVar[str] = "dora"

    dora: bool = True


@dataclass(frozen=True)
class PiSSA(LoRA):
    """LoRA whose start are the largest singular values of the weights (Meng et al. 2024, arXiv 2404.02948).

    What is left of the base without them is no base, so the reference is a copy of its own, and what was trained is
    saved and judged as plain LoRA of twice the rank on the base as it was.
    """

    name: ClassVar[str] = "pissa"
    # What is trained are weights of the base: at LoRA's rate (1e-3, embedded task) GRPO and DPO fell below the base.
    preset: ClassVar[str] = "full"

    init: Literal["default", "pissa", "olora", "loftq", "orthogonal", "gaussian"] = "pissa"


@dataclass(frozen=True)
class IA3(Adapter):
    """(IA)^3 (Liu et al. 2022, arXiv 2205.05638): a factor for each key, value and inner feature; 1 at the start.

    Attributes:
        targets: modules whose outputs are scaled; null: keys and values, as peft knows them for the architecture.
        feedforward: of the targets, those whose inputs are scaled; null likewise.
    """

    name: ClassVar[str] = "ia3"
    preset: ClassVar[str] = "lora"

    targets: tuple[str, ...] | None = None
    feedforward: tuple[str, ...] | None = None

    @property
    def names_modules(self) -> bool:
        """By ``targets``."""
        return self.targets is not None

    def problems(self, train: Train) -> list[UserError]:
        """Both or neither, and the second among the first."""
        if self.targets is None and self.feedforward is None:
            return []
        if self.targets is not None and set(self.feedforward or ()) <= set(self.targets):
            return []
        words = "must name modules that adapter.targets names too"
        fix = "adapter.targets=[k_proj,v_proj,down_proj] adapter.feedforward=[down_proj]"
        return [UserError(words, key="adapter.feedforward", value=self.feedforward, fix=fix)]

    def peft_config(self) -> PeftConfig:
        """Peft's own."""
        from peft import IA3Config

        return IA3Config(
            task_type="CAUSAL_LM",
            target_modules=None if self.targets is None else list(self.targets),
            feedforward_modules=None if self.targets is None else list(self.feedforward or ()),
        )


@dataclass(frozen=True)
class VirtualTokens(Adapter):
    """Learned tokens before the prompt. They are there from the start, so training does not start at the base.

    Attributes:
        virtual_tokens: number of them.
    """

    preset: ClassVar[str] = "lora"

    virtual_tokens: Annotated[int, Gt(0), Le(1024)] = 16

    @property
    def starts_at_base(self) -> bool:
        """What stands before the prompt says something before it has learned anything."""
        return False

    @property
    def cannot_merge(self) -> str:
        """They are read, and change no weight."""
        return f"adapter={self.name} puts learned tokens before the prompt, and no weight of the base could hold them"


@dataclass(frozen=True)
class PromptTuning(VirtualTokens):
    """Learned embeddings before the prompt (Lester et al. 2021, arXiv 2104.08691)."""

    name: ClassVar[str] = "prompt"

    def peft_config(self) -> PeftConfig:
        """Peft's own."""
        from peft import PromptTuningConfig

        return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=self.virtual_tokens)


@dataclass(frozen=True)
class PrefixTuning(VirtualTokens):
    """Learned keys and values of every layer before the prompt (Li and Liang 2021, arXiv 2101.00190)."""

    name: ClassVar[str] = "prefix"

    def problems(self, train: Train) -> list[UserError]:
        """Checkpointing throws the cache away that the prefix is in."""
        if not train.gradient_checkpointing:
            return []
        words = "prefix tuning gives its keys and values as a cache, which gradient checkpointing does without"
        fix = "train.gradient_checkpointing=false, or adapter=prompt"
        return [UserError(words, key="train.gradient_checkpointing", value=True, fix=fix)]

    def peft_config(self) -> PeftConfig:
        """Peft's own."""
        from peft import PrefixTuningConfig

        return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=self.virtual_tokens)


NOT_CAUSAL = {
    "LILY": "routes by means over the batch and over tokens to come: what a row scores depends on rows beside it",
    "SHADOW": "samples from another model than it scores, by peft's own generate",
}
"""Methods of peft with which no figure here would mean what it says."""


@dataclass(frozen=True)
class AnyPeft(Adapter):
    """Any method that peft has, by its own configuration.

    Attributes:
        config: with ``peft_type``, such as ``{peft_type: LOHA, r: 8, target_modules: [q_proj]}``.
        base_when_off: whether the model with the adapter off is the base; checked before training.
        base_at_start: whether training starts at the base; checked likewise.
    """

    name: ClassVar[str] = "peft"
    preset: ClassVar[str] = "lora"

    config: dict[str, Any] | None = None
    base_when_off: bool = True
    base_at_start: bool = True

    @property
    def off_is_base(self) -> bool:
        """As told."""
        return self.base_when_off

    @property
    def starts_at_base(self) -> bool:
        """As told."""
        return self.base_at_start

    @property
    def names_modules(self) -> bool:
        """In peft's words, which are not read here."""
        return True

    @property
    def cannot_merge(self) -> str | None:
        """As peft has it."""
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
        from peft.tuners.tuners_utils import BaseTuner

        config: Any = self.peft_config()
        tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(config.peft_type)
        if not config.is_prompt_learning and tuner is not None and issubclass(tuner, BaseTuner):
            return None
        return f"peft cannot add {config.peft_type.value} to the weights of the base"

    def problems(self, train: Train) -> list[UserError]:
        """The configuration must be one of peft's."""
        fix = "'adapter.config={peft_type: LOHA, r: 8, target_modules: [q_proj, v_proj]}'"
        if not self.config or "peft_type" not in self.config:
            return [UserError("must name a method of peft", key="adapter.config.peft_type", value=None, fix=fix)]
        if (kind := str(self.config["peft_type"]).upper()) in NOT_CAUSAL:
            words = NOT_CAUSAL[kind]
            return [UserError(words, key="adapter.config.peft_type", value=kind, fix="adapter=lora, or another method")]
        if not self.base_when_off:
            words = "an adapter that changes the base cannot be saved so that it comes back, but for adapter=pissa"
            return [UserError(words, key="adapter.base_when_off", value=False, fix="adapter=pissa")]
        try:
            self.peft_config()
        except (TypeError, ValueError, KeyError) as error:
            words = f"peft does not take it ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
            return [UserError(words, key="adapter.config", value=dict(self.config), fix=fix)]
        return []

    def peft_config(self) -> PeftConfig:
        """Peft's own."""
        from peft import get_peft_config

        given = {"task_type": "CAUSAL_LM", **(self.config or {})}
        return get_peft_config(given | {"peft_type": str(given["peft_type"]).upper()})


__all__ = ["IA3", "AnyPeft", "DoRA", "PiSSA", "PrefixTuning", "PromptTuning", "RsLoRA", "VirtualTokens"]
