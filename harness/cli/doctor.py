"""``harness doctor``: what this machine can do, with a fix for each thing that is wrong."""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base.errors import UserError
from harness.base.streams import quiet
from harness.config import identity
from harness.store.cache import Cache, default_dir

if TYPE_CHECKING:
    from harness.trial.assemble import Setup

LIBRARIES = {
    "torch": "torch",
    "transformers": "transformers",
    "trl": "trl",
    "peft": "peft",
    "datasets": "datasets",
    "lm_eval": "lm-eval",
    "mlflow": "mlflow",
    "hydra": "hydra-core",
    "pandas": "pandas",
    "matplotlib": "matplotlib",
}
FREE_GB = 5.0


@dataclass(frozen=True)
class Check:
    """One line of the doctor's.

    Attributes:
        name: what was looked at.
        state: ``ok``, ``note`` (works without) or ``wrong``.
        text: what was found.
        fix: what to do, where something is not ok.
    """

    name: str
    state: str
    text: str
    fix: str = ""


def main(argv: list[str]) -> int:
    """Print every finding; exit code 1 if something is wrong."""
    parser = argparse.ArgumentParser(prog="harness doctor", description=__doc__)
    parser.add_argument("--model", metavar="PATH", help="look at this model, with task=... at the data too")
    parser.add_argument("overrides", nargs="*", help="for example tracking.uri=http://127.0.0.1:5000, task=preferences")
    options = parser.parse_args(argv)
    checks: list[Callable[[], list[Check]]] = [
        _python,
        _libraries,
        _gpu,
        _nvml,
        _bitsandbytes,
        _memory_lens,
        _disk,
        lambda: _store(options.overrides),
        _cache,
        *([lambda: model_checks(options.model, options.overrides)] if options.model else []),
    ]
    with quiet(1, 2):  # library chatter; what matters is found
        findings = [finding for check in checks for finding in check()]
    for finding in findings:
        print(f"{finding.state:<6}{finding.name:<16}{finding.text}")
        if finding.fix:
            print(f"{'':<22}fix: {finding.fix}")
    wrong = sum(f.state == "wrong" for f in findings)
    print(f"{wrong} wrong" if wrong else "ready")
    return 1 if wrong else 0


def model_checks(path: str, overrides: list[str]) -> list[Check]:
    """What a trial on the model would meet: its files, tokenizer, template, and the data where a task is named."""
    from harness.base.errors import UserErrors
    from harness.config.compose import compose, hydra_config
    from harness.sweep.deep_checks import find_problems
    from harness.trial.assemble import assemble

    named = any(o.startswith("task=") for o in overrides)
    data = [] if named else ["task=arithmetic", "task.pairs=20", "task.eval_pairs=4", "task.eval_prompts=4"]
    try:
        with hydra_config():
            plain = compose(["sweep=doctor", "model=hf", f"model.path='{path}'", *data, *overrides])
        problems = find_problems(plain)
    except UserErrors as found:
        problems = found.errors
    except UserError as found:
        problems = [found]
    if problems:
        said = [f"{e.key}{'' if e.value is None else f'={e.value}'}: {e.rule}" for e in problems]
        return [Check(_subject(e.key), "wrong", words, e.fix or "") for e, words in zip(problems, said, strict=True)]
    setup = assemble(plain)
    return [
        Check("model", "ok", _described(setup)),
        Check("data", "ok", _rows_of(setup)) if named else Check("data", "note", "none named: task=..."),
    ]


def _subject(key: str | None) -> str:
    """What a finding is about: the data, the model, or another group of the configuration."""
    group = (key or "model").partition(".")[0]
    return "data" if group == "task" else group


def _rows_of(setup: Setup) -> str:
    """How many rows a trial would train on and be judged by; `harness data` shows them."""
    from harness.tasks.ids import spoken
    from harness.trial.data import cache_of, load_data

    data, split = load_data(setup.task, cache_of(setup)), setup.eval.split
    kinds = {
        "train_pairs": data.train_pairs,
        "train_unpaired": data.train_unpaired,
        "train_prompts": data.train_prompts,
        "eval_pairs": data.eval_pairs.get(split, ()),
        "eval_prompts": data.eval_prompts.get(split, ()),
    }
    counts = ", ".join(f"{len(rows):,} {spoken(kind)}" for kind, rows in kinds.items() if rows)
    return f"{counts}; `harness data` shows what a trial would learn from"


def _described(setup: Setup) -> str:
    """Architecture, context, template and ends of a trial's model."""
    from harness.models import context_length
    from harness.models.making import source_of
    from harness.tasks.conversation import style_of
    from harness.trial.data import cache_of

    source = source_of(setup.model, cache_of(setup))
    tokenizer: Any = setup.model.tokenizer(source)
    config = setup.model.configuration(source)
    stops = ", ".join(repr(tokenizer.decode([i])) for i in setup.model.stops(tokenizer, config, source))
    style = style_of(tokenizer, conversational=False, wanted=True)
    template = "a chat template" if style.chat else "no chat template"
    if style.folds_system:
        template += " that refuses system messages (they are put into the first user turn)"
    size = f"{context_length(config) or 0:,} tokens of context, {len(tokenizer):,} in the vocabulary"
    return f"{config.model_type}, {size}; {template}; replies end with {stops}"


def _python() -> list[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    return [Check("python", "ok", f"{version}, {os.cpu_count()} cores, {identity.processor()}")]


def _libraries() -> list[Check]:
    from importlib import metadata

    found = []
    for package in LIBRARIES.values():
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            return [Check("libraries", "wrong", f"{package} is not installed", "pip install -c constraints.txt -e .")]
    return [Check("libraries", "ok", ", ".join(found))]


def _gpu() -> list[Check]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: fp32 is used"
        return [Check("gpu", "ok", f"{', '.join(names)} ({bf16})")]
    if os.path.exists("/dev/nvidiactl"):
        build = f"torch {torch.__version__} (CUDA {torch.version.cuda})"
        fix = "install a CUDA build of torch" if torch.version.cuda is None else "check the driver: nvidia-smi"
        if os.environ.get("CUDA_VISIBLE_DEVICES", "unset") in ("", "-1"):
            fix = "unset CUDA_VISIBLE_DEVICES, which hides every GPU"
        return [Check("gpu", "wrong", f"an NVIDIA device is there, but {build} sees none", fix)]
    return [Check("gpu", "note", "none; trials run on the CPU")]


def _nvml() -> list[Check]:
    import pynvml

    try:
        pynvml.nvmlInit()
        count, driver = pynvml.nvmlDeviceGetCount(), pynvml.nvmlSystemGetDriverVersion()
        pynvml.nvmlShutdown()
        return [Check("nvml", "ok", f"{count} device{'s' if count != 1 else ''}, driver {driver}")]
    except pynvml.NVMLError as error:
        if not os.path.exists("/dev/nvidiactl"):
            return [Check("nvml", "note", "no NVIDIA driver; memory is sampled from the operating system")]
        return [Check("nvml", "wrong", f"does not answer ({error})", "check the driver: nvidia-smi")]


def _bitsandbytes() -> list[Check]:
    import torch

    try:
        bitsandbytes = importlib.import_module("bitsandbytes")
        quantized, state = bitsandbytes.functional.quantize_4bit(torch.ones(64, 64), quant_type="nf4")
        restored = bitsandbytes.functional.dequantize_4bit(quantized, state)
    except Exception as error:  # whatever a broken build raises is what the user has to know
        text = f"4-bit quantization fails ({type(error).__name__}: {error})"
        return [Check("bitsandbytes", "wrong", text, "pip install -U bitsandbytes; adapter=qlora needs it")]
    good = torch.allclose(restored.float(), torch.ones(64, 64), atol=0.01)
    if not good:
        return [
            Check(
                "bitsandbytes",
                "wrong",
                "4-bit quantization gives wrong numbers",
                "pip install -U bitsandbytes",
            )
        ]
    paged = "paged 8-bit optimizer" if torch.cuda.is_available() else "optimizer unpaged without CUDA"
    return [Check("bitsandbytes", "ok", f"{bitsandbytes.__version__}: NF4 works, {paged}")]


def _memory_lens() -> list[Check]:
    from harness.telemetry.host import private_bytes, reset_peak

    private = private_bytes(os.getpid())
    if private is None:
        return [
            Check(
                "memory",
                "wrong",
                "private memory of a process cannot be read",
                "run on Linux with /proc mounted",
            )
        ]
    if not reset_peak():
        return [Check("memory", "note", "sampled at 20 Hz; the kernel's own peak cannot be reset here")]
    return [Check("memory", "ok", "private bytes and the kernel's own peak can be read")]


def _disk() -> list[Check]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free < FREE_GB:
        return [Check("disk", "wrong", f"{free:.1f} GB free here", "free space, or harness cache --prune-to 1GB")]
    return [Check("disk", "ok", f"{free:.0f} GB free here")]


def _store(overrides: list[str]) -> list[Check]:
    from harness.cli.commands import tracking_from
    from harness.store.mlflow_store import check_reachable

    tracking = tracking_from(overrides)
    try:
        check_reachable(tracking)
    except UserError as error:
        return [Check("tracking", "wrong", error.rule, error.fix or "")]
    return [Check("tracking", "ok", f"{tracking.resolved_uri} can be used")]


def _cache() -> list[Check]:
    entries = Cache(default_dir()).entries()
    size = sum(e["bytes"] for e in entries) / 1e6
    return [Check("cache", "ok", f"{len(entries)} stages, {size:,.1f} MB in {default_dir()}")]
