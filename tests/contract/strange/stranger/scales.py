"""An adapter that is no LoRA: a vector for each key, value and feed-forward projection."""

from dataclasses import dataclass
from typing import ClassVar

from harness.models.adapters import Adapter

KEYS, INSIDE = ("c_attn",), ("c_proj",)


@dataclass(frozen=True)
class Scales(Adapter):
    """(IA)^3 (Liu et al. 2022, arXiv 2205.05638) on a GPT-2."""

    name: ClassVar[str] = "scales"
    preset: ClassVar[str] = "lora"

    def peft_config(self):
        """PEFT's own."""
        from peft import IA3Config

        return IA3Config(
            task_type="CAUSAL_LM",
            target_modules=[*KEYS, *INSIDE],
            feedforward_modules=list(INSIDE),
            fan_in_fan_out=True,
        )

    def expected_trainable(self, model):
        """A number for each output of the keys, and for each input of what lies inside."""
        count = 0
        for name, module in model.named_modules():
            kind = name.rpartition(".")[2]
            if kind in (*KEYS, *INSIDE):
                inputs, outputs = module.weight.shape  # of GPT-2's Conv1D
                count += inputs if kind in INSIDE else outputs
        return count
