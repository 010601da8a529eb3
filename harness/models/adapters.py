"""What is trained: all weights, low-rank adapters, or low-rank adapters on 4-bit weights.

Import-light: peft and bitsandbytes are imported when an adapter is used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from harness.config import renamed

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftConfig
    from transformers import PreTrainedModel


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

    def __init_subclass__(cls, **kwargs: Any):
        """An adapter written when ``preset`` was called ``recipe`` works for one release."""
        super().__init_subclass__(**kwargs)
        if "recipe" in vars(cls) and "preset" not in vars(cls):
            renamed.warn(f"{cls.__name__}.recipe", "preset")
            cls.preset = vars(cls)["recipe"]

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

        config = self.peft_config()
        assert config is not None, "asked of adapters alone"
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
    """

    name: ClassVar[str] = "lora"
    preset: ClassVar[str] = "lora"

    rank: Annotated[int, Gt(0)] = 16
    alpha_over_rank: Annotated[float, Gt(0)] = 2.0
    dropout: Annotated[float, Ge(0), Le(0.9)] = 0.0
    targets: str | tuple[str, ...] = "all-linear"
    rslora: bool = False

    def peft_config(self) -> LoraConfig:
        """The adapter as peft wants it."""
        from peft import LoraConfig

        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=max(1, round(self.alpha_over_rank * self.rank)),
            lora_dropout=self.dropout,
            # A lone name goes as a list: peft reads any text but all-linear as a regular expression.
            target_modules="all-linear" if self.targets == "all-linear" else list(_listed(self.targets)),
            use_rslora=self.rslora,
        )

    def adapted_shapes(self, model: PreTrainedModel) -> list[tuple[int, int]]:
        """Of the layers that ``targets`` names."""
        return target_shapes(model, self.targets)


@dataclass(frozen=True)
class QLoRA(LoRA):
    """LoRA on a frozen NF4 base (Dettmers et al. 2023, arXiv 2305.14314).

    Attributes:
        quant_type: ``nf4`` (normal-float) or ``fp4``.
        double_quantization: quantize the block scales too; saves about 0.4 bit per parameter.
        paged_optimizer: 8-bit AdamW whose state pages to host memory, where CUDA exists; on a CPU plain AdamW.
    """

    name: ClassVar[str] = "qlora"
    preset: ClassVar[str] = "qlora"
    quantized: ClassVar[bool] = True

    quant_type: Literal["nf4", "fp4"] = "nf4"
    double_quantization: bool = True
    paged_optimizer: bool = True

    def quantization(self, compute_dtype: torch.dtype) -> Any:
        """4-bit loading with the computation in ``compute_dtype``."""
        from transformers import BitsAndBytesConfig

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
