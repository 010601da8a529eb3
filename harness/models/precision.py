"""In which numbers a trial stores its weights, computes, and scores. Torch is imported when a computation begins.

Three rules, each the answer to a number that was wrong in silence:

- *What is trained is stored in 32 bits.* bf16 has 8 bits of precision: at 5e-7, AdamW's update of a weight of 0.02 is
  rounded away 99 times in 100. Weights in bf16 are trained only where the optimizer rounds stochastically, so that
  the update survives in expectation.
- *What is frozen is stored as it would be deployed*: in bf16 on GPUs that have it.
- *One arithmetic for every score.* Base, reference, trained and reloaded model go through ``computing``, whatever a
  trainer left on their forward methods, so that a model that learned nothing ties with its base exactly.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from harness.base.errors import UserError

if TYPE_CHECKING:
    from harness.config.train import Train
    from harness.models import Model
    from harness.models.adapters import Adapter

STOCHASTIC = "adamw_8bit_stochastic"
"""torchao's AdamW with 8-bit states, whose bf16 weights are rounded up or down by chance."""


@dataclass(frozen=True)
class Place:
    """Where a trial computes, and in which numbers.

    Attributes:
        device: ``cpu`` or ``cuda``.
        precision: of the computation, ``fp32`` or ``bf16``.
        dtype: torch's, of the policy's stored weights and of every base that it is compared with.
        frozen: of weights that only ever score, such as a reward model's.
        whole: of weights that are trained themselves.
    """

    device: str
    precision: str
    dtype: Any
    frozen: Any
    whole: Any

    def stored_for(self, trains_base: bool) -> Any:
        """The dtype of a base that an adapter trains: its own weights, or something beside them."""
        return self.whole if trains_base else self.frozen

    @property
    def unpacked(self) -> Any:
        """The dtype in which 4-bit weights are multiplied."""
        import torch

        return torch.bfloat16 if self.precision == "bf16" else self.frozen


def place_on(model: Model, adapter: Adapter, train: Train, device: str, *, trains: bool, bf16: bool) -> Place:
    """The numbers of a trial on a device.

    Args:
        model: may name how weights are stored; what it asks for in bf16 is multiplied in bf16 too.
        adapter: one that trains the base's own weights has them in 32 bits, unless the model says otherwise.
        train: may name the precision.
        device: ``cpu`` or ``cuda``.
        trains: False where a model is only judged.
        bf16: whether the device computes in it well, as GPUs since Ampere do.
    """
    import torch

    bf16 = bf16 and model.follows_device
    asked = None if model.dtype == "auto" else getattr(torch, model.dtype)
    precision = train.precision
    if precision == "auto":
        precision = "bf16" if bf16 or model.dtype == "bfloat16" else "fp32"
    frozen = asked or (torch.bfloat16 if bf16 and precision == "bf16" else torch.float32)
    whole = asked or (torch.float32 if trains else frozen)
    return Place(device, precision, whole if adapter.trains_base else frozen, frozen, whole)


def precision_problems(model: Model, adapter: Adapter, train: Train) -> list[UserError]:
    """Combinations that would not train, or not compute, as they say."""
    found = []
    if adapter.trains_base and model.dtype == "bfloat16" and train.optimizer != STOCHASTIC:
        found.append(
            UserError(
                f"weights in bf16 do not learn under {train.optimizer}: at a learning rate of 5e-7 rounding undoes 99 "
                "of 100 updates",
                key="model.dtype",
                value="bfloat16",
                fix="model.dtype=auto keeps trained weights in fp32 and computes in bf16; "
                f"train.optimizer={STOCHASTIC} trains bf16 weights by stochastic rounding, at half of the memory",
            )
        )
    if train.precision == "fp32" and model.dtype == "bfloat16":
        found.append(
            UserError(
                "weights in bf16 are multiplied in bf16, so the computation would not be fp32",
                key="train.precision",
                value="fp32",
                fix="model.dtype=float32, or train.precision=bf16",
            )
        )
    if train.optimizer == STOCHASTIC and find_spec("torchao") is None:
        found.append(
            UserError(
                "needs torchao, which is not installed",
                key="train.optimizer",
                value=STOCHASTIC,
                fix="pip install 'alignment-harness[stochastic]', and a C++ compiler for training on a CPU",
            )
        )
    return found


def computing(device: str, precision: str) -> AbstractContextManager[Any]:
    """Forward passes within this compute in ``precision``: bf16 under autocast, fp32 without any.

    Make it anew for each forward pass or call of ``generate``: autocast keeps its copies of 32-bit weights until it
    ends, and a copy that was made without gradients would be used, without them, by a later pass that needs them.
    """
    import torch

    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16")


def without_autocast(model: Any) -> Any:
    """Undo what accelerate's ``prepare`` put around a model's forward method, so that ``computing`` alone decides.

    Its own way back (``unwrap_model(keep_fp32_wrapper=False)``) goes on to unwrap transformers' decorators.
    """
    own = model.__dict__.pop("_original_forward", None)
    if own is not None:
        model.forward = own
    return model


def optimizer_arguments(name: str) -> dict[str, Any]:
    """Transformers' arguments for an optimizer of this name."""
    if name == STOCHASTIC:
        return {"optim": "adamw_torch_8bit", "optim_args": "bf16_stochastic_round=True"}
    return {"optim": name}
