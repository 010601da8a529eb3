"""What merging costs is measured against the policy itself, which stays as it was to the bit."""

from __future__ import annotations

import copy
import gc
import json
import math
import statistics
import weakref
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from transformers import BitsAndBytesConfig

from harness.base.stats import rows_interval
from harness.evaluators import merge_measures
from harness.evaluators.base import EvalContext, Evaluation, Merging
from harness.evaluators.merge import Found, Merge, copies
from harness.evaluators.merge_measures import completions, divergences, tokens_per_second, two_adapters
from harness.evaluators.preference import wins
from harness.evaluators.scoring import PairLogProbs, pair_log_probs
from harness.models.adapters import LoRA, QLoRA
from harness.models.loading import character_tokenizer, load_pretrained
from harness.models.merging import CannotMerge, merged, weight_bytes, write_out
from harness.models.variants import IA3, AnyPeft, DoRA, PrefixTuning, PromptTuning
from harness.tasks.arithmetic import Arithmetic
from tests.toys import random_llama

TOKENIZER: Any = character_tokenizer(96)
TASK = Arithmetic(pairs=4, eval_pairs=12, eval_prompts=6)
TARGETS = ["q_proj", "v_proj", "down_proj"]
LORA = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS)
CONFIGS: Mapping[str, Any] = {
    "lora": LORA,
    "dora": LoraConfig(r=4, target_modules=TARGETS, use_dora=True),
    "ia3": IA3Config(task_type="CAUSAL_LM", target_modules=TARGETS, feedforward_modules=["down_proj"]),
}
QUIET = Merge(speed_tokens=0)


def policy_on(base: Any, config: Any = LORA, size: float = 0.3) -> Any:
    """``base`` under an adapter that changes what it says by much."""
    torch.manual_seed(5)
    policy = get_peft_model(base, copy.deepcopy(config))
    for parameter in policy.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, mean=0.0 if config.peft_type == "LORA" else 1.0, std=size)
    return policy.eval()


def context_of(policy: Any, merging: Merging | None, before: Any = None) -> EvalContext:
    plain = EvalContext(
        model=random_llama(0) if before is None else before, tokenizer=TOKENIZER, task=TASK, data=TASK.load(),
        rows=lambda rows: [dict(r) for r in rows], split="test", batch_size=8, max_length=96, max_completion_length=12,
        seed=0, device="cpu", beta=0.1,
    )  # fmt: skip

    @contextmanager
    def turn() -> Any:
        yield plain

    return replace(plain, model=policy, reference=pair_log_probs(plain), before_training=turn, merging=merging)


@pytest.fixture
def context() -> EvalContext:
    return context_of(policy_on(random_llama(0)), Merging(lambda: random_llama(0)))


# -- the divergence ------------------------------------------------------------------------------------


def test_the_divergence_is_summed_over_the_whole_vocabulary_at_every_token_of_the_completion(context):
    one, other = (replace(context, model=random_llama(seed)) for seed in (1, 2))
    sequences, _ = completions(context)
    sums, counts = divergences(one, other, sequences)
    for (prompt, completion), found, count in zip(sequences, sums, counts, strict=True):
        ids = torch.tensor([prompt + completion])
        with torch.no_grad():
            p, q = (c.model(ids).logits[0].double().log_softmax(-1) for c in (one, other))
        expected = sum((p[t].exp() * (p[t] - q[t])).sum().item() for t in range(len(prompt) - 1, ids.shape[1] - 1))
        assert count == len(completion) and found == pytest.approx(expected, rel=1e-5)
    turned, _ = divergences(other, one, sequences)
    assert math.fsum(turned) != pytest.approx(math.fsum(sums), rel=0.01), "it has a direction"


def test_a_model_diverges_from_itself_by_nothing_and_from_a_near_one_by_half_the_square(context):
    sequences, _ = completions(context)
    assert divergences(context, context, sequences)[0] == [0.0] * len(sequences)
    near = random_llama(1)
    with torch.no_grad():
        near.lm_head.weight *= 1.0001
    sums, counts = divergences(replace(context, model=random_llama(1)), replace(context, model=near), sequences)
    assert all(value > 0 for value in sums) and 0 < sum(sums) / sum(counts) < 1e-6


def test_both_sides_of_pairs_are_compared_on_and_without_pairs_what_the_policy_samples(context):
    sequences, keys = completions(context)
    assert len(sequences) == len(keys) == 2 * len(context.data.eval_pairs["test"])
    alone = replace(context, data=replace(context.data, eval_pairs={}))
    sampled, named = completions(alone)
    assert len(sampled) == len(set(named)) == len(context.data.eval_prompts["test"])
    found = QUIET.evaluate(alone)
    assert "merged_kl_per_token" in found.metrics
    assert "no held-out pairs" in found.absent["merged_preference_accuracy"]


# -- what merging costs --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
def test_merged_in_32_bits_the_policy_says_the_same(kind):
    context = context_of(policy_on(random_llama(0), CONFIGS[kind]), Merging(lambda: random_llama(0)))
    with context.before_training() as before:  # type: ignore[misc]
        sequences, _ = completions(context)
        far, tokens = divergences(context, before, sequences)
    found = QUIET.evaluate(context).metrics
    assert sum(far) / sum(tokens) > 0.01, "an adapter that says nothing merges with anything"
    assert 0 <= found["merged_kl_per_token"] < 1e-9
    assert found["merged_preference_accuracy_change"] == found["merged_preference_accuracy_change_low"] == 0


def test_in_16_bits_it_does_not_quite_and_the_note_says_which_they_are(context):
    rounded = replace(context, merging=Merging(lambda: random_llama(0).bfloat16()))
    whole, half = QUIET.evaluate(context), QUIET.evaluate(rounded)
    assert half.metrics["merged_kl_per_token"] > 1e-6 > whole.metrics["merged_kl_per_token"]
    assert half.metrics["merged_mb"] == whole.metrics["merged_mb"] / 2
    assert half.notes == ["merged: the adapter merged into the base, in bfloat16"]


def test_preference_accuracy_changes_pair_by_pair_and_its_interval_is_that_of_the_differences(context):
    wrong = random_llama(3)  # another base: as bad as merging can be
    found = QUIET.evaluate(replace(context, merging=Merging(lambda: random_llama(3))))
    path = found.examples["merge"]
    other = pair_log_probs(replace(context, model=merged_by_hand(wrong, context.model)))

    def won(scores: PairLogProbs) -> list[float]:
        start = context.reference
        assert start is not None
        return wins((scores.chosen - start.chosen).tolist(), (scores.rejected - start.rejected).tolist())

    after, before = won(other), won(pair_log_probs(context))
    changes = [a - b for a, b in zip(after, before, strict=True)]
    assert any(changes) and list(path["merged_preference_accuracy_change"]) == changes
    name, metrics = "merged_preference_accuracy", found.metrics
    assert metrics[name] == statistics.fmean(after) and metrics[f"{name}_change"] == pytest.approx(
        statistics.fmean(after) - statistics.fmean(before)
    )
    interval = rows_interval(changes, path["cluster"])
    assert (metrics[f"{name}_change_low"], metrics[f"{name}_change_high"]) == (interval.low, interval.high)
    assert metrics["merged_kl_per_token"] > 0.1


def merged_by_hand(base: Any, policy: Any) -> Any:
    """W + (alpha / r) B A, for every adapted layer."""
    layers = dict(policy.get_base_model().named_modules())
    with torch.no_grad():
        for name, module in base.named_modules():
            if name.endswith(tuple(TARGETS)):
                a, b = (layers[f"{name}.lora_{part}.default"].weight for part in "AB")
                module.weight += LORA.lora_alpha / LORA.r * b @ a
    return base


def test_where_nobody_scored_the_start_it_is_scored_for_the_difference(context):
    unscored = replace(context, reference=replace(context.reference, chosen=torch.zeros(0), rejected=torch.zeros(0)))
    assert QUIET.evaluate(unscored).metrics == QUIET.evaluate(context).metrics


def test_sizes_are_those_of_the_files(context, tmp_path):
    found = QUIET.evaluate(context).metrics
    context.model.save_pretrained(str(tmp_path / "adapter"))
    assert found["adapter_mb"] * 1e6 == (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    whole = merged(random_llama(0), tmp_path / "adapter")
    whole.save_pretrained(str(tmp_path / "whole"))
    assert found["merged_mb"] * 1e6 == payload(tmp_path / "whole" / "model.safetensors") == weight_bytes(whole)


def payload(file: Path) -> int:
    """Bytes of the tensors of a safetensors file: what stands after its header."""
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    assert json.loads(content[8 : 8 + size])
    return len(content) - 8 - size


# -- the policy stays as it was ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_policy_is_left_as_it_was_to_the_bit(kind):
    policy = policy_on(random_llama(0), CONFIGS[kind])
    context = context_of(policy, Merging(lambda: random_llama(0)))
    ids = torch.tensor([TOKENIZER("12+7=")["input_ids"]])

    def state() -> list[Any]:
        with torch.no_grad():
            logits = policy(input_ids=ids).logits
        hooks = sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in policy.modules())
        flags = [(name, p.requires_grad, p.data_ptr()) for name, p in policy.named_parameters()]
        return [
            logits.tolist(), {k: v.tolist() for k, v in policy.state_dict().items()}, flags, hooks, policy.training,
            list(policy.peft_config), policy.active_adapters, policy.peft_config["default"].to_dict(),
            policy.generation_config.to_dict(), torch.get_rng_state().tolist(),
        ]  # fmt: skip

    before = state()
    found = Merge(speed_tokens=3).evaluate(context).metrics
    assert found["unmerged_tokens_per_s"] > 0 and found["merged_tokens_per_s"] > 0
    assert state() == before


def test_an_error_between_two_adapters_leaves_one(context, tmp_path):
    context.model.save_pretrained(str(tmp_path))
    with pytest.raises(RuntimeError, match="while two"), two_adapters(context.model, tmp_path) as names:
        assert list(context.model.peft_config) == list(names) == ["default", "second"]
        raise RuntimeError("while two")
    assert list(context.model.peft_config) == ["default"] == context.model.active_adapters


def test_a_policy_that_came_back_from_disk_stays_frozen(context, tmp_path):
    context.model.save_pretrained(str(tmp_path))
    context.model.requires_grad_(False)
    with two_adapters(context.model, tmp_path):
        pass
    assert not any(p.requires_grad for p in context.model.parameters())


# -- speed ---------------------------------------------------------------------------------------------


def test_speed_is_all_rows_tokens_over_the_median_of_the_timed_samples(context, monkeypatch):
    clock = iter([0.0, 100.0, 0.0, 2.0, 0.0, 9.0, 0.0, 4.0])
    monkeypatch.setattr(merge_measures.time, "perf_counter", lambda: next(clock))
    assert tokens_per_second(context, 5) == len(TASK.load().eval_prompts["test"]) * 5 / 4.0


def test_every_completion_is_of_the_asked_length_whatever_the_model_would_say(context):
    eager = random_llama(0)
    calls: list[int] = []
    with torch.no_grad():
        eager.lm_head.weight[TOKENIZER.eos_token_id] += 100 * eager.lm_head.weight.abs().max()
    eager.register_forward_hook(lambda *_: calls.append(1))
    assert tokens_per_second(replace(context, model=eager), 7) is not None
    assert len(calls) == 7 * (1 + merge_measures.REPEATS)


def test_requests_take_the_two_adapters_in_turn(context, tmp_path):
    context.model.save_pretrained(str(tmp_path))
    asked: list[Any] = []
    own = context.model.base_model._enable_peft_forward_hooks

    def listening(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs.get("adapter_names"))
        return own(*args, **kwargs)

    with two_adapters(context.model, tmp_path) as names:
        context.model.base_model._enable_peft_forward_hooks = listening
        assert tokens_per_second(context, 2, names) is not None
        ids = torch.tensor([TOKENIZER("1+1=")["input_ids"]] * 2)
        with torch.no_grad():
            mixed = context.model(input_ids=ids, adapter_names=["default", "second"]).logits
        del context.model.base_model._enable_peft_forward_hooks
    assert [n for n in asked if n][0] == ["default", "second"] * 3
    with torch.no_grad():
        torch.testing.assert_close(mixed, context.model(input_ids=ids).logits)


@pytest.mark.parametrize("kind", ["dora", "ia3"])
def test_adapters_that_peft_does_not_switch_by_request_have_no_such_speed(kind):
    context = context_of(policy_on(random_llama(0), CONFIGS[kind]), Merging(lambda: random_llama(0)))
    found = Merge(speed_tokens=2).evaluate(context)
    assert "multi_adapter_tokens_per_s" not in found.metrics
    assert "plain LoRA" in found.absent["multi_adapter_tokens_per_s"]


# -- what cannot be merged -----------------------------------------------------------------------------


def test_adapters_say_whether_they_can_be_merged():
    for adapter in (LoRA(), QLoRA(), DoRA(), IA3()):
        assert adapter.cannot_merge is None
    for adapter in (PromptTuning(), PrefixTuning()):
        assert "learned tokens before the prompt" in adapter.cannot_merge
    targets = {"target_modules": ["q_proj"]}
    assert AnyPeft({"peft_type": "LOHA", **targets}).cannot_merge is None
    for kind in ("PROMPT_TUNING", "P_TUNING"):
        refusal = AnyPeft({"peft_type": kind, "num_virtual_tokens": 4}).cannot_merge
        assert refusal is not None and kind in refusal


def test_a_refusal_is_a_reason_and_no_figure(context):
    refused = QUIET.evaluate(replace(context, merging=replace(context.merging, refusal="why not")))
    assert refused == Evaluation({}, absent={"merged_kl_per_token": "why not"})
    full = QUIET.evaluate(replace(context, merging=None))
    assert not full.metrics and "no adapter was trained" in full.absent["merged_kl_per_token"]


def test_what_peft_does_not_merge_is_a_reason_too(context, tmp_path):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(random_llama(0), config).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(CannotMerge, match="PROMPT_TUNING"):
        merged(random_llama(0), tmp_path / "adapter")
    found = Found()
    assert context.merging is not None
    assert not list(copies(context, context.merging, tmp_path, found))
    assert "PROMPT_TUNING" in found.absent["merged_kl_per_token"]


def test_weights_that_are_no_numbers_are_not_merged(tmp_path):
    policy = policy_on(random_llama(0))
    with torch.no_grad():
        next(p for p in policy.parameters() if p.requires_grad).fill_(math.inf)
    policy.save_pretrained(str(tmp_path))
    with pytest.raises(CannotMerge, match="NaN"):
        merged(random_llama(0), tmp_path)


# -- on 4-bit weights ----------------------------------------------------------------------------------

FOUR_BITS = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
)


EIGHT_BITS = BitsAndBytesConfig(load_in_8bit=True, bnb_4bit_compute_dtype=torch.float32)


@pytest.fixture
def on_4_bits(tmp_path: Path) -> EvalContext:
    return on_bits(tmp_path, 4, FOUR_BITS)


def on_bits(tmp_path: Path, bits: int, quantized: BitsAndBytesConfig) -> EvalContext:
    """64 wide: bitsandbytes' 4-bit kernels for CPUs are right only for rows that are a multiple of 64 values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER), hidden_size=64, num_hidden_layers=2, intermediate_size=128, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=96, initializer_range=0.1, bos_token_id=None,
        pad_token_id=TOKENIZER.pad_token_id, eos_token_id=TOKENIZER.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")

    def load(folder: Path, quantization: Any) -> Any:
        options = {"dtype": torch.float32, "device": "cpu", "attention": None}
        return load_pretrained(str(folder), quantization=quantization, **options).eval()

    base = tmp_path / "base"
    merging = Merging(lambda: load(base, None), lambda folder: load(folder, quantized), bits=bits)
    return context_of(policy_on(load(base, quantized), size=0.1), merging, load(base, quantized))


def test_4_bit_weights_are_written_out_as_the_layers_multiply_by_them(on_4_bits):
    assert on_4_bits.merging is not None
    quantized = on_4_bits.model.get_base_model()
    whole = write_out(quantized, on_4_bits.merging.base())
    ids = torch.tensor([TOKENIZER("12+7=")["input_ids"]])
    with torch.no_grad(), on_4_bits.model.disable_adapter():
        torch.testing.assert_close(whole(ids).logits, on_4_bits.model(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(whole(ids).logits, on_4_bits.merging.base()(ids).logits, atol=1e-2)
    with pytest.raises(ValueError, match="no weight"):
        write_out(on_4_bits.merging.base(), on_4_bits.merging.base())


def test_an_adapter_belongs_to_the_4_bit_weights_that_it_was_trained_on(on_4_bits):
    found = QUIET.evaluate(on_4_bits)
    kl = {way: found.metrics[f"{way}_kl_per_token"] for way in ("merged", "merged_dequantized", "merged_4bit")}
    assert kl["merged_dequantized"] < 1e-6, "the base as it was seen in training: nothing is lost"
    assert kl["merged"] > 100 * kl["merged_dequantized"] and kl["merged_4bit"] > 100 * kl["merged_dequantized"]
    assert found.metrics["merged_4bit_mb"] < found.metrics["merged_dequantized_mb"] == found.metrics["merged_mb"]
    assert not found.absent and [note.partition(":")[0] for note in found.notes] == list(kl)
    assert set(found.examples["merge"]) >= {f"{way}_preference_accuracy_change" for way in kl}


def test_an_adapter_on_8_bits_merges_into_what_they_stand_for_and_back(tmp_path):
    found = QUIET.evaluate(on_bits(tmp_path, 8, EIGHT_BITS))
    kl = {way: found.metrics[f"{way}_kl_per_token"] for way in ("merged", "merged_dequantized", "merged_8bit")}
    assert kl["merged_dequantized"] < 1e-6 and kl["merged"] > 10 * kl["merged_dequantized"]
    assert kl["merged_8bit"] > 10 * kl["merged_dequantized"]
    assert found.metrics["merged_8bit_mb"] < found.metrics["merged_dequantized_mb"]


def test_the_policy_on_4_bits_stays_as_it_was_and_switches_adapters(on_4_bits):
    ids = torch.tensor([TOKENIZER("12+7=")["input_ids"]])
    with torch.no_grad():
        before = on_4_bits.model(input_ids=ids).logits
        found = Merge(speed_tokens=2).evaluate(on_4_bits).metrics
        assert torch.equal(on_4_bits.model(input_ids=ids).logits, before)
    speeds = [name for name in found if name.endswith("tokens_per_s")]
    assert len(speeds) == 5 and "multi_adapter_tokens_per_s" in speeds


def test_one_merged_copy_is_there_at_a_time(on_4_bits, tmp_path):
    assert on_4_bits.merging is not None
    on_4_bits.model.save_pretrained(str(tmp_path / "adapter"))
    seen: list[weakref.ref[Any]] = []
    for _, model in copies(on_4_bits, on_4_bits.merging, tmp_path, Found()):
        gc.collect()
        assert [ref() for ref in seen] == [None] * len(seen)
        seen.append(weakref.ref(model))
        del model
    assert len(seen) == 3


def test_a_merged_copy_that_cannot_be_written_costs_the_4_bit_figures_alone(on_4_bits, tmp_path):
    assert on_4_bits.merging is not None
    on_4_bits.model.save_pretrained(str(tmp_path / "adapter"))
    (tmp_path / "whole").touch()  # a file where the folder is to be
    found = Found()
    assert [way for way, _ in copies(on_4_bits, on_4_bits.merging, tmp_path, found)] == ["merged", "merged_dequantized"]
    assert "cannot be written" in found.absent["merged_4bit_kl_per_token"]


# -- its fingerprint -----------------------------------------------------------------------------------


def test_its_fingerprint_merges_an_adapter_and_holds_no_clock(context):
    own, fixture = Merge().on_fixture(replace(context, model=random_llama(0)), "")
    first, second = (own.evaluate(fixture) for _ in range(2))
    assert first.metrics == second.metrics and not any("per_s" in name for name in first.metrics)
    assert not first.absent and first.metrics["merged_kl_per_token"] < 1e-9
    with fixture.model.disable_adapter():  # type: ignore[attr-defined]
        alone = pair_log_probs(replace(fixture, beta=None)).chosen
    assert not torch.allclose(alone, pair_log_probs(fixture).chosen)
