"""A judge that is a model in this process, from a folder or the hub: no server, no network, one answer per question."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from harness.base.errors import UserError
from harness.base.records import UNTOLD, unless_default
from harness.config import closure, devices, identity
from harness.judges.base import Answer, Answering, Judge

if TYPE_CHECKING:
    from harness.models.hub import HF

POLICIES = ("harness.models.HF", "harness.models.hub.HF")
"""Models that a judge may be, by the name that YAML has for them."""
ANOTHER = "another model: judge=local judge.path=FOLDER, or judge=served judge.model=NAME"
SELDOM = ("stop_tokens", "chat_template", "attention")
"""Settings that change answers, and are part of what a judge is only where they are set."""


@dataclass(frozen=True)
class Local(Judge):
    """Reads a question with the model's own chat template and answers, greedily unless it is given a temperature.

    Attributes:
        path: directory or hub id of whole weights with their tokenizer.
        revision: hub revision.
        trust_remote_code: run code that ships with the model; off unless asked for.
        read: ``letters`` takes the letter that the model finds most probable as its verdict, in one forward pass;
            ``words`` lets it write, and reads what it wrote as a server's answer is read.
        least: probability of the three letters together below which an answer counts as unreadable (``letters``): what
            the model would rather have written is no verdict.
        max_tokens: of an answer (``words``).
        temperature: of an answer (``words``); 0 takes the most probable token.
        seed: of its draws; an answer depends on that and on its question, and not on the batch.
        batch_size: questions at once.
        dtype: ``auto`` is bf16 on a GPU that has it, and else fp32.
        device: ``auto`` is the GPU where there is one.
        pad_token: to use where the tokenizer has none.
        eos_token: likewise; an answer ends with it.
        stop_tokens: that end an answer in words, beside those that tokenizer and model name.
        chat_template: ``off`` asks in plain text where the tokenizer has a template too.
        attention: transformers' attention implementation; null leaves the choice to transformers.
        gguf_file: of a policy; refused, since a judge reads whole weights.
        policy: class and path of the model that is trained, where the judge is to be that (``judge=policy``).
    """

    path: str = field(kw_only=True)
    revision: str | None = None
    trust_remote_code: bool = False
    read: Literal["letters", "words"] = "letters"
    least: Annotated[float, Ge(0), Le(1)] = 0.1
    max_tokens: Annotated[int, Gt(0)] = 256
    temperature: Annotated[float, Ge(0)] = unless_default(0.0)
    seed: Annotated[int, Ge(0)] = unless_default(0)
    batch_size: Annotated[int, Gt(0)] = field(default=8, metadata=UNTOLD)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    pad_token: str | None = field(default=None, metadata=UNTOLD)
    eos_token: str | None = None
    stop_tokens: tuple[str, ...] = unless_default(())
    chat_template: Literal["auto", "off"] = unless_default("auto")
    attention: str | None = unless_default(None)
    gguf_file: str | None = unless_default(None)
    policy: tuple[str | None, ...] = field(default=(), metadata=UNTOLD)  # told as the trial's model already

    @property
    def model(self) -> HF:
        """The model, as the harness loads its own."""
        from harness.models.hub import HF

        return HF(
            path=self.path,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            pad_token=self.pad_token,
            eos_token=self.eos_token,
            stop_tokens=self.stop_tokens,
            chat_template=self.chat_template,
            attention=self.attention,
        )

    @property
    def identity(self) -> Mapping[str, Any]:
        """The model's content, how it is read, what computes it, and the code that asks."""
        how: dict[str, Any] = {"least": self.least} if self.read == "letters" else {"max_tokens": self.max_tokens}
        if self.samples:
            how |= {"temperature": self.temperature, "seed": self.seed}
        return {
            "model": identity.model_content(self.path, self.revision),
            "read": self.read,
            **how,
            "eos_token": self.eos_token,
            **{name: value for name in SELDOM if (value := getattr(self, name)) != _default(name)},
            "dtype": self.dtype,
            "device": devices.compute_device(self.device),
            "versions": identity.library_versions(),
            "reading": closure.code_digest(closure.closure([__name__])),
        }

    @property
    def writes(self) -> bool:
        """With ``read=words``."""
        return self.read == "words"

    @property
    def samples(self) -> bool:
        """Whether it draws what it says."""
        return self.writes and self.temperature > 0

    def settled(self) -> Local:
        """With the commit of a hub model as its revision."""
        return replace(self, revision=identity.pinned(self.path, self.revision, key="judge.path"))

    def again(self, number: int) -> Local | None:
        """With another seed, where it samples."""
        return replace(self, seed=self.seed + number) if self.samples else None

    def problems(self) -> list[UserError]:
        """A folder must hold whole weights, and a policy that is to judge be one that can be loaded so."""
        if (error := self._no_judge()) is not None:
            return [error]
        found = [*super().problems(), *(_ours(error) for error in self.model.problems())]
        if not found and self.model.ingredients() is not None:
            fix = "python -m harness export TRIAL --merge --to FOLDER writes whole weights"
            found.append(UserError("holds an adapter and no whole model", key="judge.path", value=self.path, fix=fix))
        return found

    def _no_judge(self) -> UserError | None:
        """Why this is no model for a judge, whatever its files are; None where it may be."""
        kind, path = self.policy or (None, self.path)
        if path != self.path:
            return None  # another model was named in its place
        if kind is not None and kind not in POLICIES:
            kind = kind.rpartition(".")[2]
            rule = f"is to be the model that is trained, a {kind}, and a judge is a folder or a hub id of whole weights"
            return UserError(rule, key="judge.path", value=self.path, fix=ANOTHER)
        if self.gguf_file is not None:
            rule = "has its weights packed, and a judge reads whole ones"
            return UserError(rule, key="judge.gguf_file", value=self.gguf_file, fix=ANOTHER)
        return None

    @property
    def verdict_alone(self) -> bool:
        """Where letters are read."""
        return self.read == "letters"

    def answers(self, questions: Sequence[str], told: Callable[[int, Answer], None]) -> None:
        """Load, answer, and free the memory."""
        with self.at_work() as answering:
            answering(questions, told)

    @contextmanager
    def at_work(self) -> Iterator[Answering]:
        """Loaded.

        Raises:
            UserError: the model cannot be loaded, or there is no GPU where one is named.
        """
        from harness.judges.reading import Reader
        from harness.models.loading import let_go

        if found := self.problems():
            raise found[0]
        reader = Reader(self)
        try:
            yield reader.answer
        finally:
            device = reader.device
            reader.forget()
            let_go(device)


def _default(name: str) -> Any:
    """Of a field."""
    return next(field.default for field in fields(Local) if field.name == name)


@contextmanager
def in_our_words() -> Iterator[None]:
    """Errors about a model as errors about a judge."""
    try:
        yield
    except UserError as error:
        raise _ours(error) from None


def _ours(error: UserError) -> UserError:
    key = (error.key or "judge.path").replace("model.", "judge.", 1)
    return UserError(error.rule, key=key, value=error.value, fix=(error.fix or "").replace("model.", "judge.") or None)
