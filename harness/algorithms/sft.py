"""SFT on the chosen completions, and the do-nothing algorithm for the floor row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from harness.algorithms.base import Algorithm, Training, TrainJob
from harness.base.errors import UserError
from harness.base.records import unless_default
from harness.config.train import Train

IGNORED = -100
"""Label of a token that carries no loss, as torch's cross-entropy has it."""
COLUMNS = ("prompt_ids", "completion_ids")


@dataclass(frozen=True)
class SFT(Algorithm):
    """Supervised fine-tuning on the chosen (or desirable) completions; the prompt carries no loss.

    Attributes:
        anchor: weight of the KL of the policy to the base, on the trained tokens and over the whole vocabulary; 0
            holds no reference. It keeps what the rows do not speak of, at the price of a second forward pass.
        packing: put several rows into one sequence (``algorithms.packing``). A step takes the same number of rows.
    """

    name: ClassVar[str] = "sft"
    family: ClassVar[Literal["offline", "online", "none"]] = "offline"
    consumes: ClassVar[Literal["pairs", "unpaired", "prompts", "nothing"]] = "unpaired"
    keeps_dropout: ClassVar[bool] = True

    anchor: Annotated[float, Ge(0)] = unless_default(0.0)
    packing: bool = unless_default(False)

    @property
    def uses_reference(self) -> bool:
        """Imitation needs none, but for an anchor."""
        return self.anchor > 0

    @property
    def packs(self) -> bool:
        """As asked."""
        return self.packing

    def unpacked(self) -> SFT:
        """A row a sequence."""
        return replace(self, packing=False)

    def rows_in(self, data: Any) -> int:
        """Chosen and desirable completions."""
        return len(data.train_pairs) + sum(bool(row["label"]) for row in data.train_unpaired)

    def problems(self, task: Any, data: Any, train: Train) -> list[UserError]:
        """At least one desirable completion is needed."""
        if self.rows_in(data):
            return []
        return [UserError("sft needs chosen or desirable completions, and this data set has none", key="task")]

    @property
    def alone(self) -> str | None:
        """A step's sequences are packed for one process."""
        return "it packs the rows of a step for one process (algo.packing)" if self.packing else None

    def trainer(self, job: TrainJob) -> Training:
        """TRL's trainer on (prompt, completion) rows."""
        from trl import SFTConfig

        from harness.algorithms.arguments import common_arguments, tokenized_completions
        from harness.algorithms.packing import Collator, Packed, check_apart
        from harness.algorithms.replay import with_replayed
        from harness.algorithms.trl_seam import imitation, wants_one_sequence

        rows = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in job.data.train_pairs]
        rows += [{"prompt": r["prompt"], "completion": r["completion"]} for r in job.data.train_unpaired if r["label"]]
        limit = job.train.max_length
        encoded = with_replayed(job, tokenized_completions(job, rows))
        tokens = encoded.map(lambda row: labelled(row, limit), remove_columns=COLUMNS)
        arguments, packed = common_arguments(job), None
        if self.packing:
            assert job.train.batch_size and job.train.micro_batch_size
            sizes = {"batch_size": job.train.batch_size, "micro_batch_size": job.train.micro_batch_size}
            packed = Packed(tokens, **sizes, limit=limit, seed=job.seed)
            arguments |= {
                "per_device_train_batch_size": 1,
                "gradient_accumulation_steps": packed.accumulation,
                "train_sampling_strategy": "sequential",
            }
        trainer = imitation(self.anchor, job.reference)(
            model=job.model,
            args=SFTConfig(**arguments, max_length=limit, packing=False, dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=tokens,
            processing_class=job.tokenizer,
            peft_config=job.adapter.peft_config(),
            callbacks=job.callbacks,
        )
        if packed is None:
            return Training(trainer, job.holds)
        tokenizer: Any = job.tokenizer
        collator = Collator(tokenizer.pad_token_id, flat=wants_one_sequence(trainer.model))
        if job.probes:
            check_apart(trainer.model, packed, collator)
        trainer.train_dataset, trainer.data_collator = packed, collator
        return Training(trainer, job.holds, rows=packed.rows)


def labelled(row: dict[str, list[int]], limit: int) -> dict[str, list[int]]:
    """One sequence of at most ``limit`` tokens; those of the prompt carry no loss."""
    prompt, completion = row["prompt_ids"], row["completion_ids"]
    labels = [IGNORED] * len(prompt) + completion
    return {"input_ids": (prompt + completion)[:limit], "labels": labels[:limit]}


@dataclass(frozen=True)
class Untrained(Algorithm):
    """``algo=none``: the model as it is, the floor of a comparison or a checkpoint trained elsewhere."""

    name: ClassVar[str] = "none"
    family: ClassVar[Literal["offline", "online", "none"]] = "none"
    consumes: ClassVar[Literal["pairs", "unpaired", "prompts", "nothing"]] = "nothing"

    @property
    def uses_reference(self) -> bool:
        """Nothing is trained."""
        return False

    @property
    def trains(self) -> bool:
        """Nothing is trained."""
        return False

    def trainer(self, job: TrainJob) -> Training:
        """Never called: ``trains`` is False."""
        raise TypeError("algo=none does not train")
