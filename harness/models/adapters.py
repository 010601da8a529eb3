"""What is trained: all weights, low-rank adapters, or low-rank adapters on quantized weights.

Import-light: peft and bitsandbytes are imported when an adapter is used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from harness.base.errors import UserError
from harness.base.records import unless_default
from harness.config import renamed
from harness.config.devices import gpu_visible

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftConfig
    from transformers import PreTrainedModel

    from harness.config.train import Train


BLOCK = 64
"""Weights that share a scale in 4-bit format."""
TAKES_APART = ("pissa", "olora", "loftq")
"""Starts of LoRA that change the base's weights: what is left of them is no base."""


@dataclass(frozen=True)
class Adapter(ABC):
    """How the policy's weights become trainable."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    name: ClassVar[str]
    preset: ClassVar[str]
    """Which column of an algorithm's presets (``full``, ``lora``, ``qlora``) that suits this adapter."""
    quantized: ClassVar[bool] = False
    trains_base: ClassVar[bool] = False
    """Whether the base's own weights are what is trained."""

    # Knobs that the harness asks every adapter for; one that has them declares fields of these names.
    rank = None
    dropout = 0.0
    paged_optimizer = False
    bits = None

    def __init_subclass__(cls, **kwargs: Any):
        """An adapter written when ``preset`` was called ``recipe`` works for one release."""
        super().__init_subclass__(**kwargs)
        if "recipe" in vars(cls) and "preset" not in vars(cls):
            renamed.warn(f"{cls.__name__}.recipe", "preset")
            cls.preset = vars(cls)["recipe"]

    @property
    def off_is_base(self) -> bool:
        """Whether the model with the adapter switched off is the base.

        Where it is not, the reference is a copy of the base, and what was trained comes back as plain LoRA on the base
        (``models.plain_lora``). A forward pass before training checks it.
        """
        return True

    @property
    def starts_at_base(self) -> bool:
        """Whether the model with the adapter is the base before the first step. Checked likewise."""
        return True

    @property
    def shares_base(self) -> bool:
        """Whether other roles (critic, reward model) can put adapters of the same kind onto the policy's base."""
        return self.off_is_base and self.starts_at_base

    @property
    def names_modules(self) -> bool:
        """Whether it names modules of the model, which may not be there, or may be none to adapt."""
        return False

    @property
    def width_multiple(self) -> int:
        """On a CPU, what the widths of the layers that it quantizes must be multiples of."""
        return 1

    @property
    def cannot_merge(self) -> str | None:
        """Why the adapter cannot be added to the base's weights, so that a plain model is left; None where it can."""
        return None

    def problems(self, train: Train) -> list[UserError]:
        """What is impossible about the adapter's own knobs, or with those of training. Torch-free."""
        return []

    @abstractmethod
    def peft_config(self) -> PeftConfig | None:
        """What TRL wraps the model with; None trains the model itself."""

    def expected_trainable(self, model: PreTrainedModel) -> int:
        """Number of trainable parameters, from the base model before it is wrapped; here what peft makes trainable.

        For linear layers under LoRA that is the sum of r (d_in + d_out) (``lora_parameters``). A formula of ours would
        have to follow peft through fused experts, routers and tied layers.
        """
        return trainable_in(self.wrapped_empty(model))

    def quantization(self, compute_dtype: torch.dtype) -> Any | None:
        """A ``BitsAndBytesConfig`` for loading the base, or None."""
        return None

    def adapted_shapes(self, model: PreTrainedModel) -> list[tuple[int, int]] | None:
        """(d_in, d_out) of every linear layer that is adapted; None where the adapter does not tell."""
        return None

    def wrapped_empty(self, model: PreTrainedModel) -> Any:
        """A model of the same class and configuration on the meta device, with the adapter.

        Raises:
            ValueError: peft finds nothing to adapt, or cannot adapt what is named; with its words.
        """
        import copy
        import warnings

        import torch
        from peft import get_peft_model

        config: Any = self.peft_config()
        assert config is not None, "asked of adapters alone"
        if getattr(config, "init_lora_weights", True) is not True:
            config.init_lora_weights = True  # some take the weights apart, and there are none; sizes are the same
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as about a setting that peft corrects by itself
            return get_peft_model(type(model)(copy.deepcopy(model.config)), config)


@dataclass(frozen=True)
class Full(Adapter):
    """Every weight of the policy is trained; the reference is a second, frozen copy."""

    name: ClassVar[str] = "full"
    preset: ClassVar[str] = "full"
    trains_base: ClassVar[bool] = True

    def peft_config(self) -> None:
        """No wrapping."""
        return None

    def expected_trainable(self, model: PreTrainedModel) -> int:
        """All parameters, tied ones counted once."""
        return sum(p.numel() for p in model.parameters())


@dataclass(frozen=True)
class LoRA(Adapter):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): W + (alpha / r) B A, with B = 0 at the start.

    Attributes:
        rank: r.
        alpha_over_rank: ``lora_alpha / r``; a constant ratio keeps the size of an update when r is swept.
        dropout: dropout on the adapter's input, in the policy's gradient pass alone; online algorithms train without.
        targets: ``all-linear`` (every linear layer but the output head) or module names such as ``[q_proj]``.
        rslora: scale by alpha / sqrt(r) instead (Kalajdzievski 2023, arXiv 2312.03732).
        alpha: alpha itself, in the place of ``alpha_over_rank``: held fixed while r is swept, it scales the update of
            a small rank up.
        dora: learn the length of each column apart from its direction (Liu et al. 2024, arXiv 2402.09353).
        init: ``default`` (B = 0); ``pissa`` (the largest singular values are what is trained, Meng et al. 2024,
            arXiv 2404.02948), ``olora`` (orthonormal, Bueyuekakyuez 2024, arXiv 2406.01775) and ``loftq`` (Li et al.
            2023, arXiv 2310.08659) take the base apart; ``orthogonal`` and ``gaussian`` draw A otherwise.
        init_iterations: of a fast singular value decomposition for ``pissa``; null: the exact one.
    """

    name: ClassVar[str] = "lora"
    preset: ClassVar[str] = "lora"

    rank: Annotated[int, Gt(0)] = 16
    alpha_over_rank: Annotated[float, Gt(0)] = 2.0
    dropout: Annotated[float, Ge(0), Le(0.9)] = 0.0
    targets: str | tuple[str, ...] = "all-linear"
    rslora: bool = False
    alpha: Annotated[float, Gt(0)] | None = unless_default(None)
    dora: bool = unless_default(False)
    init: Literal["default", "pissa", "olora", "loftq", "orthogonal", "gaussian"] = unless_default("default")
    init_iterations: Annotated[int, Gt(0)] | None = unless_default(None)

    @property
    def off_is_base(self) -> bool:
        """Not where the start takes the base apart."""
        return self.init not in TAKES_APART

    @property
    def names_modules(self) -> bool:
        """By ``targets``."""
        return self.targets != "all-linear"

    def problems(self, train: Train) -> list[UserError]:
        """Starts that do not go with the rest."""
        return _start_problems(self, train)

    def peft_config(self) -> LoraConfig:
        """The adapter as peft wants it."""
        from peft import LoraConfig

        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha or max(1, round(self.alpha_over_rank * self.rank)),  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            # A lone name goes as a list: peft reads any text but all-linear as a regular expression.
            target_modules="all-linear" if self.targets == "all-linear" else list(_listed(self.targets)),
            use_rslora=self.rslora,
            use_dora=self.dora,
            init_lora_weights=self._start(),  # type: ignore[arg-type]
        )

    def _start(self) -> bool | str:
        """``init`` in peft's words."""
        if self.init == "pissa" and self.init_iterations is not None:
            return f"pissa_niter_{self.init_iterations}"
        return True if self.init == "default" else self.init

    def adapted_shapes(self, model: PreTrainedModel) -> list[tuple[int, int]]:
        """Of the layers that ``targets`` names."""
        return target_shapes(model, self.targets)


def _start_problems(adapter: LoRA, train: Train) -> list[UserError]:
    found, init = [], adapter.init

    def wrong(key: str, value: Any, words: str, fix: str) -> None:
        found.append(UserError(words, key=key, value=value, fix=fix))

    if init == "loftq" and not gpu_visible():
        wrong("adapter.init", init, "needs CUDA: peft quantizes the base there", "adapter.init=pissa, or adapter=qlora")
    if init in TAKES_APART and adapter.quantized:
        words = f"takes the base's weights apart, and those of {adapter.name} are codes of a few bits"
        wrong("adapter.init", init, words, "adapter=lora, or adapter.init=default")
    if init in TAKES_APART and adapter.dora:
        words = "is converted to plain LoRA when it is saved, which cannot hold dora's lengths"
        wrong("adapter.init", init, words, "adapter.dora=false, or adapter.init=default")
    if init in TAKES_APART and train.checkpoint_steps:
        words = f"changes the base at the start, which a checkpoint does not hold ({init})"
        wrong("train.checkpoint_steps", train.checkpoint_steps, words, "train.checkpoint_steps=null")
    if adapter.init_iterations is not None and init != "pissa":
        wrong("adapter.init_iterations", adapter.init_iterations, "is read by adapter.init=pissa alone", "null")
    if init == "orthogonal" and adapter.rank % 2:
        wrong("adapter.rank", adapter.rank, "must be even for adapter.init=orthogonal", "rank=16")
    return found


@dataclass(frozen=True)
class QLoRA(LoRA):
    """LoRA on a frozen NF4 base (Dettmers et al. 2023, arXiv 2305.14314), or on one of 8 bits.

    Attributes:
        bits: 4; or 8, a scale for each row, activations as they are (``models.eight_bit``).
        quant_type: ``nf4`` (normal-float) or ``fp4``; of 4 bits.
        double_quantization: quantize the block scales too; saves about 0.4 bit per parameter; of 4 bits.
        paged_optimizer: 8-bit AdamW whose state pages to host memory, where CUDA exists; on a CPU plain AdamW.
    """

    name: ClassVar[str] = "qlora"
    preset: ClassVar[str] = "qlora"
    quantized: ClassVar[bool] = True

    quant_type: Literal["nf4", "fp4"] = "nf4"
    double_quantization: bool = True
    paged_optimizer: bool = True
    bits: Literal[4, 8] = unless_default(4)

    @property
    def width_multiple(self) -> int:
        """Weights that share a scale: bitsandbytes on a CPU gives wrong numbers for widths between."""
        return BLOCK if self.bits == 4 else 1

    def problems(self, train: Train) -> list[UserError]:
        """Those of LoRA, and knobs of one kind of quantization beside another."""
        found, rule = super().problems(train), "is read by adapter.bits=4 alone"
        if self.bits != 4 and self.quant_type != QLoRA.quant_type:
            fix = f"adapter.quant_type={QLoRA.quant_type}"
            found.append(UserError(rule, key="adapter.quant_type", value=self.quant_type, fix=fix))
        if self.bits != 4 and not self.double_quantization:
            fix = "adapter.double_quantization=true"
            found.append(UserError(rule, key="adapter.double_quantization", value=False, fix=fix))
        return found

    def quantization(self, compute_dtype: torch.dtype) -> Any:
        """Loading in ``bits`` with the computation in ``compute_dtype``."""
        from transformers import BitsAndBytesConfig

        if self.bits == 8:
            return BitsAndBytesConfig(load_in_8bit=True, bnb_4bit_compute_dtype=compute_dtype)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.quant_type,
            bnb_4bit_use_double_quant=self.double_quantization,
            bnb_4bit_compute_dtype=compute_dtype,
        )


def trainable_in(model: Any) -> int:
    """Number of parameters that are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def lora_parameters(d_in: int, d_out: int, rank: int) -> int:
    """Trainable parameters of one adapted matrix: A is (r, d_in), B is (d_out, r)."""
    return rank * (d_in + d_out)


def target_shapes(model: PreTrainedModel, targets: str | Sequence[str]) -> list[tuple[int, int]]:
    """(d_in, d_out) of every linear layer that ``targets`` names.

    Names match as peft's do: the whole module path, or its end after a dot. ``all-linear`` leaves the output
    head out. Quantized layers know their logical shape as ``in_features`` and ``out_features`` too.
    """
    head = model.get_output_embeddings()
    shapes = []
    for name, module in model.named_modules():
        shape = _linear_shape(module)
        if shape is None or module is head:
            continue
        if targets == "all-linear" or any(name == t or name.endswith(f".{t}") for t in _listed(targets)):
            shapes.append(shape)
    return shapes


def _listed(targets: str | Sequence[str]) -> Sequence[str]:
    return (targets,) if isinstance(targets, str) else targets


def _linear_shape(module: Any) -> tuple[int, int] | None:
    import torch

    if isinstance(module, torch.nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # GPT-2 stores its weight transposed
        return int(module.weight.shape[0]), int(module.nf)
    return None
