"""Completions come from the model's own distribution, whatever the generation configuration in its folder asks for."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma4TextConfig, GenerationConfig, LlamaConfig

from harness.algorithms.base import TrainJob
from harness.algorithms.grpo import GRPO
from harness.algorithms.ppo.algorithm import PPO
from harness.config.train import Train
from harness.evaluators.base import EvalContext
from harness.evaluators.scoring import sample
from harness.models.adapters import Full, LoRA
from harness.models.generation import MOST_CACHE, own_distribution, rows_within_cache, sampling_config, stop_ids
from harness.models.loading import character_tokenizer
from harness.tasks.arithmetic import Arithmetic
from harness.tasks.base import TaskData
from harness.telemetry.clock import PhaseClock
from tests.inside import tell
from tests.toys import Fixed, build_model, conversational_rows, random_llama, write_jsonl

TOKENIZER = character_tokenizer(64)
EOS = TOKENIZER.eos_token_id
PROMPTS = ("12+7=", "1+1=", "9+", "abc")

OPTIONS: dict[str, Any] = {
    "max_length": 7,
    "min_length": 12,
    "min_new_tokens": 6,
    "max_time": 0.0,
    "stop_strings": ["1", "2", "a"],
    "do_sample": True,
    "num_beams": 3,
    "use_cache": False,
    "cache_implementation": "static",
    "temperature": 0.1,
    "top_k": 1,
    "top_p": 0.1,
    "min_p": 0.5,
    "top_h": 0.1,
    "typical_p": 0.1,
    "epsilon_cutoff": 0.2,
    "eta_cutoff": 0.5,
    "repetition_penalty": 3.0,
    "encoder_repetition_penalty": 3.0,
    "length_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1,
    "bad_words_ids": [[i] for i in range(3, 30)],
    "renormalize_logits": True,
    "forced_bos_token_id": 5,
    "forced_eos_token_id": 6,
    "remove_invalid_values": True,
    "exponential_decay_length_penalty": (1, 3.0),
    "suppress_tokens": list(range(3, 30)),
    "begin_suppress_tokens": list(range(3, 30)),
    "sequence_bias": [[[7], 30.0]],
    "guidance_scale": 3.0,
    "watermarking_config": {"greenlist_ratio": 0.1, "bias": 30.0},
    "num_return_sequences": 2,
    "output_scores": True,
    "output_logits": True,
    "return_dict_in_generate": True,
    "prompt_lookup_num_tokens": 3,
    "penalty_alpha": 0.6,
    "diversity_penalty": 1.0,
    "num_beam_groups": 3,
    "early_stopping": True,
    "prefill_chunk_size": 2,
    "token_healing": True,
    "a_word_of_its_own": 3,
}
"""Of ``generation_config.json``, each with a value that would show."""


def planted(**options: Any) -> Any:
    model = random_llama(0, context=64)
    for name, value in options.items():
        setattr(model.generation_config, name, value)
    return model


def context(model: Any) -> EvalContext:
    return EvalContext(
        model=model,
        tokenizer=TOKENIZER,
        task=Arithmetic(),
        data=TaskData(),
        rows=lambda rows: [dict(r) for r in rows],
        split="test",
        batch_size=16,
        max_length=64,
        max_completion_length=12,
        seed=0,
        device="cpu",
    )


ONLINE = (GRPO(beta=0.0, num_generations=2), PPO(beta=0.0))


def trainer_of(model: Any, algo: Any, folder: Path, adapter: Any = None) -> Any:
    job = TrainJob(
        model=model,
        reference=None,
        tokenizer=TOKENIZER,
        adapter=adapter or Full(),
        task=Arithmetic(),
        data=TaskData(train_prompts=tuple({"prompt": p, "answer": "1"} for p in PROMPTS)),
        rows=lambda rows: [dict(row) for row in rows],
        reward=Fixed((0.0,) * 4),
        train=Train(
            learning_rate=1e-2, steps=1, batch_size=4, micro_batch_size=4, max_length=64, max_completion_length=12,
            warmup_ratio=0.0, gradient_checkpointing=False, logging_steps=1,
        ),
        seed=0,
        output_dir=folder,
        device="cpu",
        precision="fp32",
        clock=PhaseClock(lambda kind, data: None),
        frozen=torch.float32,
    )  # fmt: skip
    return algo.trainer(job).trainer


def rolled_out(trainer: Any) -> list[list[int]]:
    """The completions that an online trainer samples with a seed."""
    torch.manual_seed(0)
    trainer.drawn = 0
    ids = [TOKENIZER(p)["input_ids"] for p in PROMPTS]
    return trainer.sampled(ids, None, {}, trainer.num_generations)[0]


# -- nothing of the model's own acts ---------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("temperature", [1.0, 0.0], ids=["sampled", "greedy"])
def test_evaluators_sample_the_same_with_and_without_the_option(name, temperature):
    drawn = [
        sample(context(model), PROMPTS, per_prompt=3, temperature=temperature)
        for model in (planted(), planted(**{name: OPTIONS[name]}))
    ]
    assert drawn[0] == drawn[1]


@pytest.mark.slow
@pytest.mark.parametrize("algo", ONLINE, ids=lambda algo: algo.name)
def test_rollouts_are_the_same_with_and_without_each_option(tmp_path, algo):
    trainer = trainer_of(planted(), algo, tmp_path)
    plain, own = rolled_out(trainer), trainer.model.generation_config
    for name, value in OPTIONS.items():
        trainer.model.generation_config = copy.deepcopy(own)
        setattr(trainer.model.generation_config, name, value)
        assert rolled_out(trainer) == plain, name


@pytest.mark.parametrize("algo", ONLINE, ids=lambda algo: algo.name)
def test_rollouts_are_the_same_where_the_trainer_was_made_on_such_a_model(tmp_path, algo):
    served = planted(**{k: v for k, v in OPTIONS.items() if k != "a_word_of_its_own"})
    assert rolled_out(trainer_of(served, algo, tmp_path)) == rolled_out(trainer_of(planted(), algo, tmp_path))


def test_an_adapter_on_such_a_model_samples_as_one_on_a_plain_model(tmp_path):
    options = {"repetition_penalty": 3.0, "min_p": 0.5, "min_new_tokens": 6}
    found = []
    for model in (planted(), planted(**options)):
        trainer = trainer_of(model, ONLINE[0], tmp_path, LoRA(rank=2))
        said = rolled_out(trainer)
        judged = sample(context(trainer.model.eval()), PROMPTS, per_prompt=3, temperature=1.0)
        found.append((said, judged))
    assert found[0] == found[1]


def test_what_generate_goes_by_is_the_same_whatever_the_models_own_configuration_says():
    """Every field that transformers knows, so that one of a later version is looked at too."""
    known = {n for n in vars(GenerationConfig()) if not n.startswith("_")}
    left = {"pad_token_id", "bos_token_id", "eos_token_id", "transformers_version"}
    found = []
    for options in ({}, {name: OPTIONS.get(name, 3) for name in known - left} | {"a_word_of_its_own": 3}):
        model = planted(**options)
        how = sampling_config(TOKENIZER, model, max_new_tokens=12, temperature=0.7)
        with own_distribution(model, TOKENIZER):
            effective, _ = model._prepare_generation_config(how)
        found.append({k: str(v) for k, v in vars(effective).items()})
    assert found[0] == found[1]
    assert (found[1]["top_k"], found[1]["temperature"], found[1]["max_new_tokens"]) == ("0", "0.7", "12")


def test_the_first_tokens_have_the_entropy_of_the_models_own_distribution():
    with torch.no_grad():
        logits = planted()(input_ids=torch.tensor([TOKENIZER("12+7=")["input_ids"]])).logits[0, -1]
    log_probs = torch.log_softmax(logits, -1)
    own = float(-(log_probs.exp() * log_probs).sum())
    model = planted(min_p=0.3, repetition_penalty=2.0, suppress_tokens=[3, 4, 5])
    one_token = replace(context(model), batch_size=1000, max_completion_length=1)
    drawn = sample(one_token, ["12+7="], per_prompt=4000, temperature=1.0)
    shares = torch.bincount(torch.tensor([s.ids[0] for s in drawn]), minlength=len(log_probs)) / len(drawn)
    assert float(-torch.xlogy(shares, shares).sum()) == pytest.approx(own, abs=0.05)


def test_temperature_0_is_greedy():
    model = planted(temperature=0.5, do_sample=True, top_k=3)
    for drawn in sample(context(model), PROMPTS, per_prompt=1, temperature=0.0):
        ids = TOKENIZER(PROMPTS[drawn.row])["input_ids"]
        for token in drawn.ids:
            with torch.no_grad():
                assert model(input_ids=torch.tensor([ids])).logits[0, -1].argmax() == token
            ids = [*ids, token]


# -- where completions end -------------------------------------------------------------------------------


def test_stop_ids_are_those_of_the_tokenizer_and_of_both_of_the_models_configurations():
    model = planted(eos_token_id=[7, 8])
    model.config.eos_token_id = 9
    assert stop_ids(TOKENIZER, model) == sorted({EOS, 7, 8, 9})
    model = planted(eos_token_id=None)
    model.config.eos_token_id = None
    assert stop_ids(TOKENIZER, model) == [EOS]


@pytest.mark.parametrize("algo", ONLINE, ids=lambda algo: algo.name)
def test_a_rollout_ends_where_a_sample_of_the_evaluators_does_and_both_say_so(tmp_path, algo):
    ends = {*range(3, 12), EOS}

    def model() -> Any:
        made = planted(eos_token_id=[3, 4, 5, 6, 7])
        made.config.eos_token_id = [8, 9, 10, 11]
        return made

    trainer = trainer_of(model(), algo, tmp_path)
    said = rolled_out(trainer)
    assert set(trainer.eos_token_ids) == ends
    told: list[str] = []

    def scores(_: Any, completions: Any, __: Any) -> list[float]:
        told.extend(completions)
        return [0.0] * len(completions)

    trainer.scorer.use(scores)
    trainer._score(TOKENIZER.batch_decode(said, skip_special_tokens=True), said, row=[0] * 4)
    judged = sample(context(model()), PROMPTS, per_prompt=2, temperature=1.0)
    for tokens, ended in [*zip(said, trainer._ended, strict=True), *((s.ids, s.ended) for s in judged)]:
        assert not ends.intersection(tokens[:-1])
        assert ended == (tokens[-1] in ends) == (len(tokens) < 12 or tokens[-1] in ends)
    # A token that ends a reply is no word of it, also where the tokenizer does not have it for special.
    texts = [*zip(said, told, strict=True), *((s.ids, s.text) for s in judged)]
    assert any(tokens[-1] in ends - {EOS} for tokens, _ in texts)
    for tokens, text in texts:
        kept = tokens[:-1] if tokens[-1] in ends else tokens
        assert text == TOKENIZER.decode(list(kept), skip_special_tokens=True)


# -- what is served stays as it was ----------------------------------------------------------------------


def test_the_model_has_its_own_configurations_again_afterwards_also_after_an_error():
    model = planted(repetition_penalty=3.0)
    own, special = model.generation_config, model.config.eos_token_id
    with pytest.raises(RuntimeError, match="in between"), own_distribution(model, TOKENIZER):
        model.config.eos_token_id = 11  # as transformers' trainer does
        model.generation_config.pad_token_id = 12
        raise RuntimeError("in between")
    assert model.generation_config is own and own.repetition_penalty == 3.0
    assert (own.pad_token_id, model.config.eos_token_id) == (TOKENIZER.pad_token_id, special)


SERVED = {
    "repetition_penalty": 1.3,
    "min_p": 0.2,
    "no_repeat_ngram_size": 2,
    "stop_strings": ["cat"],
    "temperature": 0.6,  # without do_sample, as published models have it: transformers refuses to save it once changed
    "eos_token_id": [0, 3],
}


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["dpo", "grpo"])
def test_a_trial_saves_the_generation_configuration_that_the_user_gave_and_samples_without_it(tmp_path, algo):
    rows = write_jsonl(tmp_path / "rows.jsonl", conversational_rows(24))
    reward, told = ("reward=length",) if algo == "grpo" else (), []
    for name in ("plain", "served"):
        folder = build_model(tmp_path / name, "llama")
        path = folder / "generation_config.json"
        given = json.loads(path.read_text()) | ({"eos_token_id": [0, 3]} if name == "plain" else SERVED)
        path.write_text(json.dumps(given))
        told.append(
            tell(
                tmp_path / f"trial-{name}", tmp_path / "cache", f"algo={algo}", "adapter=full", "model=hf",
                f"model.path={folder}", "task=preferences", f"task.path={rows}", "eval.evaluators.lm_eval=null",
                "eval.evaluators.behaviour.samples=2", *reward,
                "train.batch_size=8", "train.micro_batch_size=8", "train.steps=2", "train.checkpoint_steps=1",
                "train.max_length=96", "train.max_completion_length=16", "train.learning_rate=1e-3", sizes=(),
            )
        )  # fmt: skip
        saved = json.loads((tmp_path / f"trial-{name}" / "artifacts" / "model" / "generation_config.json").read_text())
        assert {k: v for k, v in saved.items() if k != "transformers_version"} == {
            k: v for k, v in given.items() if k != "transformers_version"
        }
    plain, served = (t.under("eval/") for t in told)
    assert plain == served and "eval/entropy_per_token" in plain


def test_a_model_loaded_from_such_a_folder_samples_as_one_without(tmp_path):
    """``generation_config.json`` of case A3: penalties and stop strings."""
    folder = tmp_path / "model"
    random_llama(0, context=64).save_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {k: v for k, v in SERVED.items() if k != "eos_token_id"}))
    served = AutoModelForCausalLM.from_pretrained(folder)
    assert served.generation_config.min_p == 0.2
    for temperature in (0.0, 1.0):
        drawn = [
            sample(context(m.eval()), PROMPTS, per_prompt=3, temperature=temperature)
            for m in (plain, served, copy.deepcopy(served))
        ]
        assert drawn[0] == drawn[1] == drawn[2]


def test_the_room_of_a_cache_is_that_of_the_layers_also_where_they_differ():
    plain = LlamaConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    each = 2 * 2 * (2 * 16) * 2 * 100  # keys and values, two layers, two heads of 16, two bytes, 100 tokens
    assert rows_within_cache(plain, 100, 10**9, wide=False) == MOST_CACHE // each
    mixed = Gemma4TextConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        global_head_dim=48,
        layer_types=["sliding_attention", "full_attention"],
    )
    assert rows_within_cache(mixed, 100, 10**9, wide=False) == MOST_CACHE // (2 * each)
    assert rows_within_cache(mixed, 100, 3, wide=True) == 3
