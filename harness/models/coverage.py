"""How much of a model an adapter reaches: experts that are one tensor, and layers that peft leaves out, are not seen.

Peft adapts modules that it knows, such as linear layers. An architecture that keeps its experts in one tensor gets an
adapter on its attention alone, under the same words (``all-linear``) and with a count that is right.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import Any

WRAPPED = ".base_layer."
"""In the names of weights that peft put an adapter on."""
ALL = "all-linear"
NAMED = 4


def note(policy: Any) -> str | None:
    """What of the layers' weights has no adapter, in words; None where all of them have one.

    Args:
        policy: wrapped by peft, asked to adapt all linear layers.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    reached, missed = 0, defaultdict(int)
    base = policy.get_base_model()
    ends = {id(m.weight) for m in (base.get_input_embeddings(), base.get_output_embeddings()) if hasattr(m, "weight")}
    own = {name for name, p in policy.named_parameters() if p.requires_grad}
    adapted = tuple(f"{name}." for name, module in policy.named_modules() if isinstance(module, BaseTunerLayer))
    for name, weight in policy.named_parameters():
        short = _short(name)
        of_adapter = name.startswith(adapted) and WRAPPED not in name  # another role's, a critic's for one
        if (
            name in own
            or of_adapter
            or id(weight) in ends
            or weight.ndim < 2
            or short.endswith("bias")
            or "conv" in short
        ):
            continue
        values = values_in(weight)
        if WRAPPED in name:
            reached += values
        elif re.search(r"\.\d+\.", name):  # of a repeated layer
            missed[short] += values
    if not missed:
        return None
    share = reached / (reached + sum(missed.values()))
    names = sorted(missed, key=lambda one: -missed[one])
    told = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    return (
        f"adapter.targets={ALL} reaches {share:.1%} of the weights in the model's layers; without an adapter: {told} "
        "(peft leaves them out of it; adapter=peft takes target_parameters or target_modules that name them)"
    )


def _short(name: str) -> str:
    """Of a weight, from behind the number of its layer."""
    return re.split(r"\.\d+\.", name, maxsplit=1)[-1].removesuffix(".weight")


def values_in(parameter: Any) -> int:
    """Logical number of values: a 4-bit parameter packs two into a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)
