"""What is computed of a model before training, in the cache: one trial scores and samples, all others read. No torch.

Two trials ask for the same where the model is the same in weights, 4 bits or not, dtype and arithmetic, and so are the
held-out rows, the limits and the seed of sampling. A sweep over beta, rank or rate is such a case, and so is the base
that is judged beside the one that training starts from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import closure, identity
from harness.store.cache import HELD_OUT, MARGINS, Cache
from harness.tasks.curating.applying import uncurated

if TYPE_CHECKING:
    from harness.trial.context import Ground

SETTINGS = ("split", "batch_size", "max_length", "max_completion_length", "seed")
"""Of evaluation, what can change a score or a sample; a batch changes how they are rounded."""


@dataclass(frozen=True)
class OfTheBase:
    """Keeps what ``Memo.once`` asks for.

    Attributes:
        ground: of the trial.
        dtype: of the model's weights as they are stored.
        quantization: of the model; None where it has none.
        within: whether it is asked while another stage is built.
    """

    ground: Ground
    dtype: str
    quantization: Mapping[str, Any] | None
    within: bool = False

    def __call__(self, key: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        """What ``compute`` returns, or has returned to a trial before this one."""
        from harness.evaluators.scoring import PAIRS, TRAINING, PairLogProbs, Sample
        from harness.trial.context import note_stage

        ground, setup = self.ground, self.ground.setup
        inputs = {
            "asked": list(key),
            "base": ground.base_as_read,
            "data": ground.data.digest if key == TRAINING else ground.data.held_out_digest,
            "dtype": self.dtype,
            "quantization": self.quantization,
            "precision": ground.precision,
            "device": ground.device,
            "chat": ground.chat,
            "before every prompt": None if ground.style.preamble is None else asdict(ground.style.preamble),
            "settings": {name: getattr(setup.eval, name) for name in SETTINGS},
            "code": closure.code_digest(code_of(ground)),
            "versions": identity.library_versions(),
        }

        def build(folder: Path) -> Mapping[str, Any]:
            found = compute()
            kept = found.numbers if key in (PAIRS, TRAINING) else [asdict(sample) for sample in found]
            (folder / "found.json").write_text(json.dumps(kept))
            return {}

        # Not the ranks' own cache: evaluators run in one process, and no other waits for what they ask.
        stage = MARGINS if key == TRAINING else f"{HELD_OUT}{key[0]}"
        entry = Cache(ground.cache.root).fetch(stage, identity.digest(inputs), build, inputs=inputs)
        if ground.journal is not None and entry.path.name not in ground.told:
            note_stage(ground.journal, stage, entry, within=self.within)
            ground.told.add(entry.path.name)
        found = json.loads((entry.path / "found.json").read_text())
        if key in (PAIRS, TRAINING):
            return PairLogProbs.of(found)
        return [Sample(**{**each, "ids": tuple(each["ids"])}) for each in found]


def code_of(ground: Ground) -> dict[str, Path]:
    """The code that can change a score or a sample."""
    return closure.closure(
        ["harness.evaluators.scoring", *identity.modules_of([ground.setup.model, uncurated(ground.setup.task)])]
    )
