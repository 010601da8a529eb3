"""One rendering for training, evaluation and rollouts, on templates and tokenizers as models ship them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trl
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from trl import DPOTrainer

from harness.algorithms import arguments
from harness.algorithms.kto import rotated
from harness.algorithms.online import OnlineTrainer
from harness.algorithms.sft import labelled
from harness.models.classifier import padding_for, sequences_of
from harness.tasks.conversation import (
    PLAIN_TEMPLATE,
    Style,
    encode,
    encode_completions,
    encode_pairs,
    folded,
    prompt_ids,
    reply_end,
    style_of,
)

SHIPPED = Path(trl.__file__).parent / "chat_templates"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
MARKS = (
    "<pad> <unk> <s> </s> <|im_start|> <|im_end|> <|endoftext|> <|begin_of_text|> <|start_header_id|> "
    "<|end_header_id|> <|eot_id|> <bos> <eos> <start_of_turn> <end_of_turn> <|user|> <|assistant|> <|system|> <|end|> "
    "<BOS_TOKEN> <|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> <|SYSTEM_TOKEN|> "
    "<think> </think>"
).split()
WORDS = [
    "What is the capital of France? Paris is the capital, and it always was.",
    "user assistant system model [INST] [/INST] You are helpful. Cutting Knowledge Date: December 2023",
]


def tokenizer_of(
    template: str | None, *, bos: str | None, eos: str | None, adds: str = "", pad: str | None = "<pad>"
) -> Any:
    """A byte-level tokenizer with the special tokens of many families; ``adds`` names what it puts around texts."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        WORDS, trainers.BpeTrainer(vocab_size=420, special_tokens=MARKS, initial_alphabet=alphabet)
    )
    if adds:
        known = [(t, core.token_to_id(t)) for t in (bos, eos) if t]
        before, after = f"{bos} " if "bos" in adds else "", f" {eos}" if "eos" in adds else ""
        core.post_processor = processors.TemplateProcessing(single=f"{before}$A{after}", special_tokens=known)
    made: Any = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=bos, eos_token=eos, pad_token=pad, unk_token="<unk>", padding_side="left"
    )
    made.chat_template = template
    return made


def shipped(name: str) -> str:
    return (SHIPPED / f"{name}.jinja").read_text()


FAMILIES: dict[str, Any] = {
    "chatml, pad is end": lambda: tokenizer_of(CHATML, bos="<|im_start|>", eos="<|im_end|>", pad="<|im_end|>"),
    "llama 2": lambda: tokenizer_of(LLAMA2, bos="<s>", eos="</s>", adds="bos"),
    "llama 3": lambda: tokenizer_of(shipped("llama3"), bos="<|begin_of_text|>", eos="<|eot_id|>", adds="bos"),
    "llama 3.2": lambda: tokenizer_of(shipped("llama3_2"), bos="<|begin_of_text|>", eos="<|eot_id|>", adds="bos"),
    "mistral": lambda: tokenizer_of(MISTRAL, bos="<s>", eos="</s>", adds="bos"),
    "gemma": lambda: tokenizer_of(shipped("gemma"), bos="<bos>", eos="<end_of_turn>", adds="bos"),
    "gemma 3": lambda: tokenizer_of(shipped("gemma3"), bos="<bos>", eos="<end_of_turn>", adds="bos"),
    "qwen 2.5": lambda: tokenizer_of(shipped("qwen2_5"), bos=None, eos="<|im_end|>", pad="<|endoftext|>"),
    "qwen 3, thinking": lambda: tokenizer_of(shipped("qwen3"), bos=None, eos="<|im_end|>", pad="<|endoftext|>"),
    "phi 3": lambda: tokenizer_of(shipped("phi3"), bos="<s>", eos="<|end|>", pad="<|endoftext|>"),
    "cohere": lambda: tokenizer_of(shipped("cohere"), bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>", adds="bos"),
    "gpt 2, without template": lambda: tokenizer_of(None, bos="<|endoftext|>", eos="<|endoftext|>"),
    "adds begin and end, without template": lambda: tokenizer_of(None, bos="<s>", eos="</s>", adds="bos eos"),
    "adds begin and end, with template": lambda: tokenizer_of(LLAMA2, bos="<s>", eos="</s>", adds="bos eos"),
}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ROWS = [
    {
        "prompt": QUESTION,
        "chosen": [{"role": "assistant", "content": "Paris is the capital."}],
        "rejected": [{"role": "assistant", "content": "It always was."}],
    },
    {
        "prompt": [*QUESTION, {"role": "assistant", "content": "Paris"}, {"role": "user", "content": "Was it always?"}],
        "chosen": [{"role": "assistant", "content": "it always was"}],
        "rejected": [{"role": "assistant", "content": "What?"}],
    },
]


@pytest.fixture(params=list(FAMILIES))
def tokenizer(request: pytest.FixtureRequest) -> Any:
    made = FAMILIES[request.param]()
    style_of(made, conversational=True, wanted=True)
    return made


def test_training_evaluation_and_rollouts_see_the_same_ids(tokenizer):
    job: Any = SimpleNamespace(
        tokenizer=tokenizer,
        rows=Style(chat=True).rows,
        data=SimpleNamespace(train_pairs=ROWS),
        train=SimpleNamespace(max_length=4096),
    )
    pairs = arguments.tokenized_pairs(job)
    single = [{"prompt": r["prompt"], "completion": r["chosen"], "label": True} for r in ROWS]
    kto = arguments.tokenized_completions(job, single)
    sft = [labelled(row, 4096) for row in kto]
    rollout = OnlineTrainer.tokenized(
        SimpleNamespace(processing_class=tokenizer),  # type: ignore[arg-type]
        [row["prompt"] for row in ROWS],
    )
    for i, row in enumerate(ROWS):
        prompt, chosen = encode(tokenizer, row["prompt"], row["chosen"])  # what evaluators score
        _, rejected = encode(tokenizer, row["prompt"], row["rejected"])
        assert (pairs[i]["prompt_ids"], pairs[i]["chosen_ids"], pairs[i]["rejected_ids"]) == (prompt, chosen, rejected)
        assert (kto[i]["prompt_ids"], kto[i]["completion_ids"], kto[i]["label"]) == (prompt, chosen, True)
        assert sft[i] == {"input_ids": prompt + chosen, "labels": [-100] * len(prompt) + chosen}
        assert rollout[i] == encode(tokenizer, row["prompt"])[0]


def test_a_conversation_has_the_ids_of_transformers_own_template(tokenizer):
    template = tokenizer.apply_chat_template
    for row in ROWS:
        prompt, chosen = encode(tokenizer, row["prompt"], row["chosen"])
        assert prompt + chosen == template(row["prompt"] + row["chosen"], tokenize=True, return_dict=True)["input_ids"]
        alone = template(row["prompt"], add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
        assert encode(tokenizer, row["prompt"])[0] == alone


def test_a_sequence_begins_once_and_a_prompt_does_not_end(tokenizer):
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    wanted = begin is not None and tokenizer("a")["input_ids"][:1] == [begin] and begin != end
    for prompt in [row["prompt"] for row in ROWS]:
        ids = encode(tokenizer, prompt)[0]
        assert not wanted or (ids[0] == begin and ids[1] != begin)
        assert ids[-1] != end
    ids = prompt_ids(tokenizer, ["What is the capital"])[0]
    assert ids[-1] != end and ids.count(begin) == (1 if wanted else 0)
    _, completion = encode(tokenizer, "What is the capital", " of France")
    assert completion[-1] == end and completion.count(end) == 1


def test_a_reply_that_was_cut_lacks_what_ends_one(tokenizer):
    row = {"prompt": ROWS[0]["prompt"], "completion": ROWS[0]["chosen"]}
    whole, cut = sequences_of(tokenizer, [row, row], ended=[True, False], longest=None)
    assert sequences_of(tokenizer, [row], ended=[False], longest=5) == [cut[-5:]]
    end = reply_end(tokenizer, chat=True)
    assert end and whole == cut + end
    assert tokenizer.decode(cut).rstrip().endswith("Paris is the capital.")


def test_the_score_of_a_reply_is_read_at_its_end_even_where_the_pad_token_ends_replies():
    assert padding_for([[5, 6, 9], [5, 7]], 0) == 0
    assert padding_for([[5, 6, 0], [5, 1], [5, 2]], 0) == 3


def test_text_that_begins_with_the_begin_token_begins_once():
    tokenizer = tokenizer_of(None, bos="<s>", eos="</s>", adds="bos")
    assert prompt_ids(tokenizer, ["<s>What is"]) == prompt_ids(tokenizer, ["What is"])
    ids = encode(tokenizer, "What is", " the capital</s>")[1]
    assert ids == encode(tokenizer, "What is", " the capital")[1]


def test_a_stand_in_template_begins_sequences_where_the_tokenizer_would():
    adding, plain = FAMILIES["adds begin and end, without template"](), FAMILIES["gpt 2, without template"]()
    for tokenizer in (adding, plain):
        style_of(tokenizer, conversational=True, wanted=True)
    assert encode(adding, QUESTION)[0].count(adding.bos_token_id) == 1
    assert plain.chat_template == PLAIN_TEMPLATE


def test_a_template_that_refuses_system_messages_gets_them_in_the_first_user_turn():
    gemma, qwen = FAMILIES["gemma"](), FAMILIES["qwen 2.5"]()
    system = [{"role": "system", "content": "Be kind."}, *QUESTION]
    style = style_of(gemma, conversational=True, wanted=True)
    assert style.folds_system and not style_of(qwen, conversational=True, wanted=True).folds_system
    (row,) = style.rows([{"prompt": system, "chosen": ROWS[0]["chosen"], "rejected": ROWS[0]["rejected"]}])
    assert row["prompt"] == [{"role": "user", "content": "Be kind.\n\nWhat is the capital of France?"}]
    assert encode(gemma, row["prompt"], row["chosen"])[1] == encode(gemma, QUESTION, row["chosen"])[1]
    assert folded(QUESTION) == QUESTION and folded(system[:1])[0]["role"] == "user"


@pytest.mark.parametrize("family", list(FAMILIES))
def test_text_is_encoded_as_trl_encodes_it_but_for_doubled_and_missing_ends(family):
    tokenizer = FAMILIES[family]()
    rows = [{"prompt": "What is the capital", "chosen": " of France", "rejected": " was"}]
    theirs = DPOTrainer._prepare_dataset(
        SimpleNamespace(_tokenizer=tokenizer),  # type: ignore[arg-type]
        Dataset.from_list(rows),
        tokenizer,
        SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start"),  # type: ignore[arg-type]
        "train",
    )
    ours = encode_pairs(tokenizer, rows)
    if "adds begin and end" in family:
        assert theirs["chosen_ids"][0][-2:] == [tokenizer.eos_token_id] * 2  # what this is about
        assert ours["chosen_ids"][0] == theirs["chosen_ids"][0][:-1]
    else:
        assert all(column == theirs[name] for name, column in ours.items())
    single = encode_completions(tokenizer, [{"prompt": rows[0]["prompt"], "completion": rows[0]["chosen"]}])
    assert single["completion_ids"] == ours["chosen_ids"]


def test_completions_are_moved_on_within_their_micro_batch_and_none_keeps_its_own():
    assert rotated([[1], [2], [3], [4], [5], [6]], 3) == [[3], [1], [2], [6], [4], [5]]
    assert rotated([[1], [2], [3], [4], [5]], 2) == [[2], [1], [4], [3], [4]], "alone at the end: the one before it"
