"""A trial's policy, written out for others to load: its adapter, or the whole model with the adapter merged in."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from harness.base.errors import UserError
from harness.base.records import TrialResult
from harness.config import renamed
from harness.config.building import build
from harness.store import journal, modelcard
from harness.store.past import past_of, result_of
from harness.trial.artifacts import MODEL, cannot_write, save_whole

if TYPE_CHECKING:
    from harness.models import Model
    from harness.models.adapters import Adapter

DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Kept:
    """A trial that kept its policy.

    Attributes:
        folder: the trial's.
        result: of its latest attempt.
        model: below it, what was kept.
        base: what an adapter is on, by path or hub id; None where all weights are there.
    """

    folder: Path
    result: TrialResult
    model: Path
    base: str | None

    @property
    def local_base(self) -> Path | None:
        """The base's folder; None for a hub id."""
        path = Path(self.base or "").expanduser()
        return path if self.base and (path.is_absolute() or path.is_dir()) else None


def kept(folder: Path) -> Kept:
    """What a trial's folder kept, if it can be loaded.

    Raises:
        UserError: it is under way, kept no policy, or its policy stands on a base that is gone.
    """
    past, result = past_of(folder), result_of(folder)
    if result is None or (past.began is not None and past.ended is None):
        fix = "wait for its end; if its runner was killed, run `python -m harness sync`"
        raise UserError("the trial has not ended", key="RUN", value=str(folder), fix=fix)
    model = folder / MODEL
    if not model.is_dir():
        raise _kept_nothing(folder, result)
    if not modelcard.is_adapter(model):
        return Kept(folder, result, model, None)
    base = modelcard.base_of(model, {})
    key = f"base_model_name_or_path in {model / 'adapter_config.json'}"
    if base is None:
        rule = "the base had random weights, which were kept nowhere, so there is no model to export"
        raise UserError(rule, key=key, value=base, fix="train on a model that exists: model=hf model.path=...")
    found = Kept(folder, result, model, base)
    if found.local_base is not None and not found.local_base.is_dir():
        fix = f"put the base back, or write there where it is now (and in model.path of {folder / 'config.yaml'})"
        raise UserError("the base of the adapter is gone", key=key, value=base, fix=fix)
    return found


def _kept_nothing(folder: Path, result: TrialResult) -> UserError:
    train = result.config.get("train")
    if train is None:
        rule = "nothing was trained: the policy is the base that it names"
        return UserError(rule, key="algo", value=result.config["algo"]["name"], fix="name a trial that trained")
    if train.get("save") == "none":
        fix = "train it again with train.save=adapter (the same sweep name, and resume=false)"
        return UserError("the trial kept no policy", key="train.save", value="none", fix=fix)
    rule = f"the trial ended as {result.outcome} and left no policy"
    return UserError(rule, key="RUN", value=str(folder), fix="name one that finished")


def export_adapter(policy: Kept, target: Path) -> Path:
    """The adapter's folder as peft and vLLM load it, with the place of its base and a card.

    Raises:
        UserError: no adapter was trained, or ``target`` cannot be written.
    """
    if policy.base is None:
        rule = "all weights were trained, so there is no adapter"
        raise UserError(rule, key="--adapter", value=policy.result.trial_id, fix="--merge writes the whole model")
    with written_whole(target) as draft:
        shutil.copytree(policy.model, draft)
        config = draft / "adapter_config.json"
        named = json.loads(config.read_text(encoding="utf-8"))
        local = policy.local_base
        named["base_model_name_or_path"] = policy.base if local is None else str(local.resolve())
        config.write_text(json.dumps(named, indent=2), encoding="utf-8")
        about = f"An adapter on `{named['base_model_name_or_path']}`, as it was trained."
        _write_card(draft, policy, about)
    return target


def export_merged(policy: Kept, target: Path, dtype: str, say: Callable[[str], object]) -> Path:
    """The whole model as safetensors, with tokenizer, chat template, generation configuration and a card.

    The adapter is merged into the base in the dtype that the trial computed in; one that was trained on 4-bit weights,
    into the values that these stand for. The sum is then stored in ``dtype``.

    Args:
        policy: of ``kept``.
        target: the folder.
        dtype: one of ``DTYPES``.
        say: told what is being done.

    Raises:
        UserError: the adapter cannot be merged, the base cannot be loaded, or ``target`` cannot be written.
    """
    import torch

    model, adapter = _components(policy.folder)
    if policy.base is not None and (reason := adapter.cannot_merge) is not None:
        raise UserError(reason, key="--merge", value=policy.result.trial_id, fix="--adapter writes the adapter alone")
    with written_whole(target) as draft:
        if policy.base is None:
            from harness.models.loading import load_pretrained

            say("reading the trained weights")
            whole: Any = load_pretrained(
                str(policy.model), dtype=torch.float32, device="cpu", quantization=None, attention=None
            )
            about = "All weights were trained"
        else:
            whole, about = _merged(policy, model, adapter, say)
        whole = whole.to(getattr(torch, dtype))
        say(f"writing {target}")
        save_whole(whole, _tokenizer(policy, model), draft)
        _write_card(draft, policy, f"{about}; stored in {dtype}.")
    return target


def _merged(policy: Kept, model: Model, adapter: Adapter, say: Callable[[str], object]) -> tuple[Any, str]:
    """The base with the adapter in its weights, and a sentence on how it came about."""
    import torch

    from harness.models.merging import CannotMerge, merged, write_out

    device, computed, stored = _numbers(policy.folder)
    source = policy.local_base
    say(f"loading the base in {computed}")
    base = model.load(source, dtype=getattr(torch, computed), device="cpu")
    into = "the base"
    quantization = adapter.quantization(getattr(torch, computed))
    if quantization is not None:
        say("writing out its quantized weights")
        place = device if device == "cpu" or torch.cuda.is_available() else "cpu"
        quantized = model.load(source, dtype=getattr(torch, stored), device=place, quantization=quantization)
        write_out(quantized, base)
        del quantized
        into = f"the values that the {adapter.bits}-bit weights of its base stand for"
    say("merging the adapter")
    try:
        whole = merged(base, policy.model)
    except CannotMerge as refused:
        fix = "--adapter writes the adapter alone"
        raise UserError(str(refused), key="--merge", value=policy.result.trial_id, fix=fix) from None
    return whole, f"The adapter was merged into {into}, in {computed}"


def _components(folder: Path) -> tuple[Model, Adapter]:
    """The trial's model and adapter, as ``config.yaml`` has them; its data may be gone."""
    from harness.models import Model
    from harness.models.adapters import Adapter

    try:
        plain = renamed.configuration(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
        model, adapter = dict(plain["model"]), dict(plain["adapter"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        rule = f"cannot be read ({type(error).__name__})"
        raise UserError(rule, key="config.yaml", value=str(folder), fix="name a trial whose folder is whole") from None
    if "rank" in adapter and adapter["rank"] is None:  # null stands for the knob's, and that for the adapter's own
        adapter = {k: v for k, v in (adapter | {"rank": plain.get("rank")}).items() if (k, v) != ("rank", None)}
    plugins = tuple(plain.get("plugins") or ())
    return (
        build(model, path="model", plugins=plugins, base=Model),
        build(adapter, path="adapter", plugins=plugins, base=Adapter),
    )


def _numbers(folder: Path) -> tuple[str, str, str]:
    """Device, dtype of the computation, and dtype of the frozen weights, as the trial's journal has them."""
    told = [e.data for e in journal.read(folder / "worker.jsonl") if e.kind == "device"]
    try:
        device, precision, stored = (str(told[-1][name]) for name in ("device", "precision", "dtype"))
    except (IndexError, KeyError):
        rule = "does not say in which numbers the trial computed"
        raise UserError(rule, key="worker.jsonl", value=str(folder), fix="--adapter writes the adapter alone") from None
    return device, "bfloat16" if precision == "bf16" else stored, stored


def _tokenizer(policy: Kept, model: Model) -> Any:
    """As it was saved beside the policy, chat template included."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(policy.model, trust_remote_code=False)
    except (OSError, ValueError, KeyError):  # one that brings code, which the model was asked to trust or not
        return model.tokenizer(policy.local_base)


def _write_card(draft: Path, policy: Kept, about: str) -> None:
    page = modelcard.card(draft, policy.result, about=about)
    (draft / "README.md").write_text(page, encoding="utf-8")
    data = policy.folder / "artifacts" / "data_card.md"
    if data.is_file():
        shutil.copyfile(data, draft / data.name)


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` to write into, which becomes ``target`` when all is written, and else is gone.

    Raises:
        UserError: ``target`` holds something, or cannot be written.
    """
    fix = "--to a folder that is new or empty"
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError("holds something already, and nothing is overwritten", key="--to", value=str(target), fix=fix)
    draft = target.with_name(f".{target.name}.export")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        yield draft
        with suppress(FileNotFoundError):
            target.rmdir()
        os.replace(draft, target)
    except cannot_write() as error:
        fix = "make room there, or name another folder"
        raise UserError(f"cannot be written ({error})", key="--to", value=str(target), fix=fix) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
