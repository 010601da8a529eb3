"""What trains in bf16 learns as it does in 32 bits, and what learned nothing ties with its base exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.algorithms.online import OnlineTrainer
from harness.base.errors import UserErrors
from harness.config.train import Train
from harness.models import Shape, Tiny, precision
from harness.models.adapters import Full, LoRA, QLoRA
from harness.models.classifier import Head, in_32_bits
from harness.models.precision import STOCHASTIC, place_on
from harness.trial import worker
from harness.trial.assemble import assemble
from tests.inside import plain_config, tell

ALGOS, ADAPTERS = ("ppo", "dpo", "ipo", "kto", "grpo"), ("full", "lora", "qlora")
STORED = (("auto", "auto", ADAPTERS), ("bfloat16", "auto", ("lora", "qlora")), ("bfloat16", STOCHASTIC, ("full",)))
"""How weights are stored, the optimizer, and the adapters that take both."""
BF16 = "train.precision=bf16"
NEVER = "train.learning_rate=1e-30"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


# -- in which numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "trains", "policy"),
    [(Full(), True, "float32"), (Full(), False, "bfloat16"), (LoRA(), True, "bfloat16"), (QLoRA(), True, "bfloat16")],
)
def test_on_a_gpu_what_is_trained_is_stored_in_32_bits_and_what_is_frozen_in_16(adapter, trains, policy):
    place = place_on(Shape(), adapter, Train(), "cuda", trains=trains, bf16=True)
    assert (place.precision, place.dtype, place.frozen) == ("bf16", getattr(torch, policy), torch.bfloat16)
    assert place.unpacked == torch.bfloat16
    assert place.stored_for(adapter.trains_base) == place.dtype  # or a policy would not tie with its own base


def test_a_reward_model_with_weights_of_its_own_is_trained_in_32_bits_beside_a_policy_with_an_adapter():
    place = place_on(Shape(), LoRA(), Train(), "cuda", trains=True, bf16=True)
    assert (place.stored_for(True), place.stored_for(False)) == (torch.float32, torch.bfloat16)


def test_whoever_asks_for_fp32_on_a_gpu_gets_it_for_frozen_weights_too():
    place = place_on(Shape(), QLoRA(), Train(precision="fp32"), "cuda", trains=True, bf16=True)
    assert (place.precision, place.frozen, place.unpacked) == ("fp32", torch.float32, torch.float32)


def test_the_embedded_model_stays_in_32_bits_unless_it_is_told_otherwise():
    assert place_on(Tiny(), LoRA(), Train(), "cuda", trains=True, bf16=True).precision == "fp32"
    told = place_on(Tiny(), LoRA(), Train(precision="bf16"), "cpu", trains=True, bf16=False)
    assert (told.precision, told.dtype, told.unpacked) == ("bf16", torch.float32, torch.bfloat16)


def test_the_optimizer_that_rounds_stochastically_is_refused_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(precision, "find_spec", lambda name: None)
    with pytest.raises(UserErrors, match="needs torchao") as refused:
        assemble(plain_config("adapter=full", f"train.optimizer={STOCHASTIC}"))
    assert "pip install" in str(refused.value.errors[0].fix)


@pytest.mark.parametrize("optimizer", ["auto", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "adafactor"])
def test_weights_in_bf16_are_refused_where_they_would_not_learn(optimizer):
    with pytest.raises(UserErrors, match="do not learn") as refused:
        assemble(plain_config("adapter=full", "model.dtype=bfloat16", f"train.optimizer={optimizer}"))
    (error,) = refused.value.errors
    assert error.key == "model.dtype" and STOCHASTIC in str(error.fix)


def test_weights_in_bf16_may_be_rounded_stochastically_or_stand_frozen_below_an_adapter():
    assemble(plain_config("adapter=full", "model.dtype=bfloat16", f"train.optimizer={STOCHASTIC}"))
    assemble(plain_config("adapter=lora", "model.dtype=bfloat16"))
    assemble(plain_config("adapter=full", "algo=none", "model.dtype=bfloat16"))


def test_weights_in_bf16_are_not_said_to_compute_in_32_bits():
    with pytest.raises(UserErrors, match="multiplied in bf16"):
        assemble(plain_config("adapter=lora", "model.dtype=bfloat16", "train.precision=fp32"))


# -- it learns -----------------------------------------------------------------------------------------


@pytest.fixture
def same_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Completions that follow from their prompts alone, since two precisions would sample two things."""

    def said(self: Any, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
        end = self.processing_class.eos_token_id
        return [[*[3 + (sum(ids) + i) % 30] * (1 + i % 4), end] for i, ids in enumerate(prompt_ids)], None

    monkeypatch.setattr(OnlineTrainer, "sampled", said)


def trained(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> dict[str, torch.Tensor]:
    """Every weight that training may move, after it: the policy's, and the critic's under ``critic.``."""
    found: dict[str, torch.Tensor] = {}
    release = worker.released

    def released(trainer: Any, **options: Any) -> Any:
        critic = getattr(trainer, "critic", None)
        found.update({f"critic.{i}": p.detach().clone() for i, p in enumerate(critic.trained if critic else ())})
        policy = release(trainer, **options)
        found.update({n: p.detach().clone() for n, p in policy.named_parameters() if p.requires_grad})
        return policy

    with monkeypatch.context() as patched:
        patched.setattr(worker, "released", released)
        tell(folder, cache, "eval=none", "train.steps=10", "train.save=none", *overrides)
    return {name: value.float() for name, value in found.items()}


def moves(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str, rate: str
) -> dict[str, torch.Tensor]:
    """What ten steps did to the weights of policy and critic."""
    before, after = (trained(folder / r, cache, monkeypatch, *overrides, r) for r in (NEVER, rate))
    change = {name: (after[name] - value).flatten() for name, value in before.items()}
    parts = {"critic": [v for n, v in change.items() if n.startswith("critic")]}
    parts["policy"] = [v for n, v in change.items() if not n.startswith("critic")]
    return {part: torch.cat(values) for part, values in parts.items() if values}


def share_moved(change: torch.Tensor) -> float:
    return (change != 0).float().mean().item()


def standard_rate(algo: str, adapter: str) -> str:
    """What a real model would train with."""
    column = plain_config(f"algo={algo}")["algo"]["presets"]["standard"][adapter]
    return f"train.learning_rate={column['learning_rate']}"


def matrix(*quick: str) -> list[Any]:
    """All combinations of algorithm and adapter; slow, but for the ``quick`` ones."""
    return [
        pytest.param(algo, adapter, marks=() if f"{algo} {adapter}" in quick else pytest.mark.slow)
        for algo in ALGOS
        for adapter in ADAPTERS
    ]


@pytest.mark.parametrize(("algo", "adapter"), matrix("dpo full"))
def test_in_bf16_the_weights_move_as_they_do_in_32_bits(tmp_path, cache, monkeypatch, same_rollouts, algo, adapter):
    """Of a critic, whose head starts at zero, ten steps move nine weights of ten in 32 bits too."""
    options, rate = (f"algo={algo}", f"adapter={adapter}"), standard_rate(algo, adapter)
    in_bf16 = moves(tmp_path / "bf16", cache, monkeypatch, *options, BF16, rate=rate)
    in_fp32 = moves(tmp_path / "fp32", cache, monkeypatch, *options, rate=rate)
    assert share_moved(in_bf16["policy"]) >= 0.99
    for part, change in in_bf16.items():
        assert share_moved(change) >= 0.99 * share_moved(in_fp32[part]), part
        assert torch.cosine_similarity(change, in_fp32[part], dim=0) >= 0.9, part


@pytest.mark.parametrize(
    "algo",
    [pytest.param(a, marks=pytest.mark.slow if a in ("dpo", "ppo") else pytest.mark.nightly) for a in ALGOS],
)
def test_weights_stored_in_bf16_keep_the_mean_update_by_stochastic_rounding(
    tmp_path, cache, monkeypatch, same_rollouts, algo
):
    """An update of a 20th of what bf16 can tell apart moves one weight in 20, by 20 times as much.

    So single weights say nothing, and the slope of a regression of all on the update in 32 bits is 1: here over some
    100,000 weights, with a standard error of about 0.02. Rounding to the nearest leaves next to nothing of it.
    """
    options, rate = (f"algo={algo}", "adapter=full"), standard_rate(algo, "full")
    stored = ("model.dtype=bfloat16", f"train.optimizer={STOCHASTIC}")
    in_bf16 = moves(tmp_path / "bf16", cache, monkeypatch, *options, *stored, rate=rate)
    in_fp32 = moves(tmp_path / "fp32", cache, monkeypatch, *options, rate=rate)
    for part, change in in_fp32.items():
        slope = (in_bf16[part] @ change) / (change @ change)
        assert slope == pytest.approx(1.0, abs=0.1), part


# -- it ties -------------------------------------------------------------------------------------------

TIES = {
    "eval/preference_accuracy": 0.5, "eval/logratio_margin": 0.0, "eval/preference_margin": 0.0,
    "eval/chosen_logratio": 0.0, "eval/rejected_logratio": 0.0, "eval/win_rate": 0.5, "eval/kl_per_sequence": 0.0,
    "eval/kl_per_token": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("algo", "adapter", "stored", "optimizer"),
    [
        pytest.param(*both.values, stored, optimizer, marks=both.marks)
        for both in matrix("ppo lora")
        for stored, optimizer, adapters in STORED
        if both.values[1] in adapters
    ],
)
def test_a_model_that_learned_nothing_ties_exactly_from_memory_and_from_disk(
    tmp_path, cache, algo, adapter, stored, optimizer
):
    options = (f"algo={algo}", f"adapter={adapter}", BF16, NEVER, f"model.dtype={stored}", "reward=model",
               "reward.steps=4", "reward.batch_size=8", f"train.optimizer={optimizer}")  # fmt: skip
    for told in (tell(tmp_path, cache, *options), tell(tmp_path, cache, *options, mode="evaluate")):
        found = {name: told.metrics[name] for name in TIES if name in told.metrics}
        assert {"eval/preference_accuracy", "eval/win_rate", "eval/kl_per_sequence"} <= found.keys()
        assert found == {name: TIES[name] for name in found}
        if adapter != "qlora":  # its delta includes what quantization costs
            for name in ("likelihood_margin", "true_reward", "correct", "entropy_per_token"):
                assert told.metrics[f"eval/{name}"] == told.metrics[f"baseline/{name}"], name


@pytest.mark.parametrize("adapter", ["full", "qlora"])
def test_a_model_that_is_not_trained_ties_exactly(tmp_path, cache, adapter):
    told = tell(tmp_path, cache, "algo=none", f"adapter={adapter}", BF16, "model.dtype=bfloat16")
    found = {name: told.metrics[name] for name in TIES if name in told.metrics}
    assert "eval/preference_accuracy" in found and found == {name: TIES[name] for name in found}
    if adapter != "qlora":
        judged = {n.removeprefix("baseline/"): v for n, v in told.under("baseline/").items()}
        assert judged and judged == {name: told.metrics[f"eval/{name}"] for name in judged}


# -- in 32 bits, whatever is on around them ------------------------------------------------------------


def test_a_head_computes_in_32_bits_under_autocast():
    head = Head(64, bias=True, device="cpu")
    torch.nn.init.normal_(head.weight)
    hidden = torch.randn(3, 64, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        said = head(hidden)
    assert said.dtype == torch.float32
    assert torch.equal(said, hidden.float() @ head.weight.T)


def test_the_head_of_a_loaded_reward_model_keeps_its_weights_and_gets_32_bits():
    shell = torch.nn.Module()
    shell.score = torch.nn.Linear(8, 1, bias=False).bfloat16()
    before = shell.score.weight.detach().float()
    assert in_32_bits(shell).score.weight.dtype == torch.float32 and torch.equal(shell.score.weight, before)
