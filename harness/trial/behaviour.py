"""Fingerprints: evaluators, a task's rules and the base's stage, run on a small fixture. Imports torch.

Kept in the cache by the code that they run, so that a trial makes one only after a change of that code. A fixture is
toy models over the embedded alphabet, made from a seed, and the first rows of the trial's own data.
"""

from __future__ import annotations

import functools
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from harness.config import closure, identity
from harness.config.fingerprint import BASE, JUDGING, Fingerprint, by_order, rounded
from harness.evaluators.base import EvalContext, Evaluation, Evaluator, sound
from harness.models import base_entries
from harness.models.loading import character_tokenizer
from harness.store.journal import Journal
from harness.tasks.base import Row, Task, TaskData, digest_of, prompt_key, text_of
from harness.tasks.conversation import PLAIN_TEMPLATE, Style
from harness.tasks.curating.applying import uncurated
from harness.trial.context import Ground
from harness.trial.keys import judging_code

FIXTURE = "1"
"""Changes where the fixture itself gives other figures: then old and new are not held against each other."""
ROWS = 6
LABELS = ("example", "cluster")
"""Columns of results per example that name it and are no figures."""
CONTEXT = 256
SMALL_BASE = {"steps": 4, "batch_size": 8, "layers": 1, "hidden": 16, "intermediate": 32, "heads": 2}


def tell_fingerprints(ground: Ground, journal: Journal) -> None:
    """Journal how the trial's evaluators, its task's rules and its base's stage behave; from the cache, or made now."""
    setup, data = ground.setup, fixture_rows(ground.data, ground.setup.eval.split)
    active = setup.eval.active
    judging = {n: e for n, e in active.items() if e.not_applicable(setup.task, ground.data) is None}
    toys = functools.cache(lambda: context_on_toys(setup.task, data, chat=ground.chat))  # shared, as a trial's are
    wanted: dict[str, tuple[dict[str, Path], dict[str, str], Callable[[], Mapping[str, float]]]] = {}
    rows = {"rows": identity.digest([FIXTURE, data.digest, ground.chat])}
    for name, evaluator in judging.items():
        code = judging_code([evaluator], setup.task)
        wanted[JUDGING + name] = (
            code,
            {**rows, **asked_of(evaluator, code)},
            lambda evaluator=evaluator: of_evaluator(evaluator, toys()),
        )
    if judging and (setup.task.has_reward or setup.task.knows_declining):
        task = uncurated(setup.task)
        code, fields = closure.closure(identity.modules_of([task])), identity.digest(asdict(task))
        wanted[f"{JUDGING}task"] = code, {**rows, "configuration": fields}, lambda: of_rules(setup.task, data)
    if setup.model.embedded:
        model, task = setup.model, setup.task
        code, asked = closure.closure(base_entries(model, task)), asked_of_base(model, task)
        wanted[BASE] = code, asked, lambda: of_base(model, task)
    for name, (code, settings, make) in wanted.items():
        try:
            found = _kept(ground, name, code, settings, make)
        except Exception as error:  # on a fixture anything may go wrong; the trial does not depend on it
            journal.write("note", message=f"no fingerprint of {name}: {type(error).__name__}: {error}")
            continue
        journal.write("fingerprint", name=name, digest=found.digest, **asdict(found))


def _kept(
    ground: Ground,
    name: str,
    code: Mapping[str, Path],
    settings: dict[str, str],
    make: Callable[[], Mapping[str, float]],
) -> Fingerprint:
    own = closure.closure([__name__], (*closure.NO_NUMBER, *closure.ELSEWHERE))
    inputs = {"code": closure.code_digest({**code, **own}), **settings, "versions": identity.library_versions()}

    def build(folder: Path) -> Mapping[str, Any]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # a toy is slower with several
        try:
            with torch.random.fork_rng(devices=[]):
                (folder / "figures.json").write_text(json.dumps(rounded(make())))
        finally:
            torch.set_num_threads(threads)
        return {}

    entry = ground.cache.fetch(f"fingerprint-{name}", identity.digest(inputs), build, inputs=inputs)
    return Fingerprint(settings, json.loads((entry.path / "figures.json").read_text()))


def asked_of(evaluator: Evaluator, code: Mapping[str, Path]) -> dict[str, str]:
    """What an evaluator is asked, beside its code: a change of these is no refactoring."""
    return {
        "configuration": identity.digest({"class": type(evaluator).__qualname__, **asdict(evaluator)}),
        "content": identity.digest(dict(evaluator.contents())),
        "versions": identity.digest(identity.versions_beside(code)),
    }


def asked_of_base(model: Any, task: Task) -> dict[str, str]:
    """What the base's stage is asked: the model, every row in order, and the libraries that train it."""
    return {
        "configuration": identity.digest([FIXTURE, dict(model.stage)]),
        "rows": digest_of(list(task.base_rows(model.steps * model.batch_size))),
        "versions": identity.digest(identity.library_versions()),
    }


# -- the fixture ---------------------------------------------------------------------------------------


def fixture_rows(data: TaskData, split: str) -> TaskData:
    """The first held-out rows of a split, prompts that have a pair before others, and nothing to train on."""
    pairs, prompts = data.eval_pairs.get(split, ()), data.eval_prompts.get(split, ())
    paired = {prompt_key(row["prompt"]): row for row in reversed(pairs)}
    asked = sorted(prompts, key=lambda row: prompt_key(row["prompt"]) not in paired)[:ROWS]
    own = [paired[key] for row in asked if (key := prompt_key(row["prompt"])) in paired]
    return TaskData(
        eval_pairs={split: [*own, *(row for row in pairs if row not in own)][:ROWS]},
        eval_prompts={split: asked},
        retention=list(data.retention)[:ROWS],
    )


def toy(seed: int) -> Any:
    """Two layers over the embedded alphabet, with weights so large that two seeds disagree by several nats."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(_toy_config()).float().eval()


def _toy_config(**more: Any) -> Any:
    from transformers import LlamaConfig

    tokenizer: Any = character_tokenizer(CONTEXT)
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        **more,
    )


def toy_judge(folder: Path) -> Path:
    """A sequence-classification model with one label, saved as a user's would be."""
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(7)
    LlamaForSequenceClassification(_toy_config(num_labels=1)).save_pretrained(folder)
    character_tokenizer(CONTEXT).save_pretrained(folder)
    return folder


def context_on_toys(task: Task, data: TaskData, *, chat: bool) -> EvalContext:
    """A toy as the trained model, with another one as the model before training."""
    from harness.evaluators.scoring import pair_log_probs

    split = next(iter(data.eval_prompts))
    tokenizer: Any = character_tokenizer(CONTEXT)
    if chat:
        tokenizer.chat_template = PLAIN_TEMPLATE
    before = EvalContext(
        model=toy(1), tokenizer=tokenizer, task=task, data=data, rows=Style(chat).rows,
        split=split, batch_size=8, max_length=CONTEXT - 16, max_completion_length=12, seed=0, device="cpu", beta=0.1,
        chat=chat,
    )  # fmt: skip

    @contextmanager
    def turn() -> Iterator[EvalContext]:
        yield before

    reference = pair_log_probs(before) if data.eval_pairs[split] else _no_pairs()
    return replace(before, model=toy(0), reference=reference, before_training=turn)


def _no_pairs() -> Any:
    from harness.evaluators.scoring import PairLogProbs

    empty = torch.zeros(0)
    return PairLogProbs(empty, empty, empty, empty, 0)


# -- figures -------------------------------------------------------------------------------------------


def of_evaluator(
    evaluator: Evaluator, context: EvalContext, name: str = "", taken: Mapping[str, str] | None = None
) -> dict[str, float]:
    """What an evaluator says of the toy: its metrics, and of results per example a mean that their order weighs.

    Raises:
        UserError: the evaluator ``name`` gives no sound evaluation.
    """
    with tempfile.TemporaryDirectory() as scratch:
        judge = toy_judge(Path(scratch) / "judge")
        own, context = evaluator.on_fixture(context, str(judge))
        return figures_of(sound(name or type(evaluator).__name__, own.evaluate(context), taken))


def figures_of(found: Evaluation) -> dict[str, float]:
    """An evaluation as figures."""
    figures = dict(found.metrics)
    for unit, columns in found.examples.items():
        figures |= {
            f"{name} by {unit}": by_order(values) for name, values in columns.items() if name not in LABELS and values
        }
    return figures | {f"absent {name}": 1.0 for name in found.absent}


def of_rules(task: Task, data: TaskData) -> dict[str, float]:
    """What a task thinks of texts that it knows: answers, both sides of pairs, and nothing at all."""
    prompts = [row for rows in data.eval_prompts.values() for row in rows]
    pairs = [row for rows in data.eval_pairs.values() for row in rows]
    texts: dict[str, Callable[[int, Row], str]] = {
        "the answer": lambda i, row: str(row.get("answer", "")),
        "a sentence with the answer": lambda i, row: f"well, the answer is {row.get('answer', '')}.",
        "declining words": lambda i, row: "i dont know.",
        "an empty text": lambda i, row: "",
        "another prompt's answer": lambda i, row: str(prompts[i - 1].get("answer", "")),
    }
    if pairs:
        texts |= {
            side: lambda i, row, side=side: text_of(pairs[i % len(pairs)][side]) for side in ("chosen", "rejected")
        }
    figures: dict[str, float] = {}
    for kind, of in texts.items():
        said = [(row, of(i, row)) for i, row in enumerate(prompts)]
        columns: dict[str, list[float]] = {}
        if task.has_reward:
            scores = task.scores([row for row, _ in said], [text for _, text in said])
            columns |= {"reward": [s.reward for s in scores], "correct": [float(s.correct) for s in scores]}
        if task.knows_declining:
            columns["declines"] = [float(task.declines(text)) for _, text in said]
        for name, values in columns.items():
            figures |= {f"{name} of {kind}": math.fsum(values) / len(values)} if values else {}
            figures |= {f"{name} of {kind} by prompts": by_order(values)} if values else {}
    if task.knows_declining and prompts:
        figures["answerable"] = by_order([float(task.answerable(row)) for row in prompts])
    return figures


def of_base(model: Any, task: Task) -> dict[str, float]:
    """A few steps of the base's stage on a smaller model: its last loss, and the size of each group of weights."""
    from safetensors.torch import load_file

    from harness.models.embedded import build

    with tempfile.TemporaryDirectory() as scratch:
        note = build(replace(model, **SMALL_BASE), task, Path(scratch), lambda step, total: None)
        weights = load_file(Path(scratch) / "model.safetensors")
    sizes = {name: float(value.double().norm()) for name, value in weights.items()}
    return {**{k: float(v) for k, v in note.items()}, **{f"norm of {n}": size for n, size in sizes.items()}}
