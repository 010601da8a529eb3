"""Rehearsals: the timeline's arithmetic, fakes against real tensors, few layers against all, bytes of adapters."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForSequenceClassification

from harness.config.compose import compose, hydra_config
from harness.models import added, generation
from harness.models.loading import character_tokenizer
from harness.models.meta_model import alike, layers_of, skeleton, with_layers
from harness.models.precision import place_on
from harness.rehearsal import standins
from harness.rehearsal.judging import heaviest
from harness.rehearsal.rows import heaviest_batch, lengthened, longest
from harness.rehearsal.step import Scene, rehearse, shortened
from harness.rehearsal.timeline import OWNERS, Mark, Timeline, Uneven, extended
from harness.rehearsal.tracker import Tracker, as_cuda_rounds
from harness.tasks.conversation import Style
from harness.trial.assemble import Setup, assemble
from harness.trial.checks import check_data
from tests.judges.small import save_small
from tests.toys import write_jsonl

ALGOS = ("ppo", "dpo", "ipo", "kto", "grpo", "orpo", "simpo", "cpo", "rloo", "online_dpo")
ADAPTERS = ("full", "lora", "qlora")
ALIKE = ("simpo", "cpo")
"""Trained by the code that trains ORPO, but for the loss."""
SMALL = (
    "model=shape/llama-10m", "eval=none", "task.pairs=40", "train.batch_size=8", "train.micro_batch_size=4",
    "train.max_length=64", "train.max_completion_length=12",
)  # fmt: skip
CPU, GPU = False, True


def setup_of(*overrides: str) -> Setup:
    with hydra_config():
        return assemble(compose([*SMALL, *overrides]))


def rehearsed(setup: Setup, *, fake: bool = True, gpu: bool = CPU, layers: int | None = None) -> Timeline:
    """One step on a CPU as its data comes, or as planned for a GPU, rows as long as they may be."""
    place = place_on(setup.model, setup.adapter, setup.train, "cpu", trains=setup.algo.trains, bf16=gpu)
    config = setup.model.configuration()
    whole = None if layers is None else config.num_hidden_layers
    if layers is not None:
        config = with_layers(config, layers)

    def load(quantization: Any) -> Any:
        return setup.model.load(None, dtype=place.dtype, device="cpu", quantization=quantization)

    rows = Style().rows
    tokenizer = setup.model.tokenizer(None)
    scene = Scene(setup, check_data(setup), tokenizer, rows, place, gpu, gpu, load=None if fake else load, layers=whole)
    return rehearse(scene, config)


# -- the timeline --------------------------------------------------------------------------------------


def course(layers: int, *, base: int = 100, weight: int = 10, kept: int = 3, work: int = 7) -> Timeline:
    """A made-up step: each layer keeps something going forwards, and leaves a gradient going backwards."""
    marks, rows, live = [], [], base + weight * layers

    def note(kind: str, layer: int | None, *levels: int) -> None:
        marks.append(Mark("train", kind, layer, len(rows)))
        rows.extend([level, *[0] * (len(OWNERS) - 1)] for level in levels)

    note("begin", None, live)
    for i in range(layers):
        note("in", i, live, live + work)
        live += kept
        note("out", i, live)
    for i in reversed(range(layers)):
        note("back", i, live + work, live + weight)
        live += weight - kept
    note("end", None, live, live + 2 * weight * layers)
    return Timeline(tuple(marks), np.array(rows))


@pytest.mark.parametrize("layers", [5, 8, 40])
@pytest.mark.parametrize("sizes", [{}, {"kept": 30}, {"kept": 30, "weight": 1, "work": 500}])
def test_two_shallow_courses_tell_the_peak_of_a_deep_one(layers, sizes):
    found = extended(course(3, **sizes), course(4, **sizes), 3, layers)
    assert found["train"].total == course(layers, **sizes).peaks()["train"].total


def test_courses_of_unlike_kind_are_refused():
    odd = course(4)
    odd = Timeline((*odd.marks[:-1], replace(odd.marks[-1], kind="another")), odd.records)
    with pytest.raises(Uneven):
        extended(course(3), odd, 3, 9)


# -- the tracker ---------------------------------------------------------------------------------------


def test_a_storage_counts_once_and_until_its_last_view_is_gone():
    with (tracker := Tracker()):
        whole = torch.zeros(1000)
        view = whole[:10]
        assert tracker.live["activations"] == 4000
        del whole
        assert tracker.live["activations"] == 4000
        del view
        assert tracker.live["activations"] == 0


def test_owners_are_told_and_changed():
    with (tracker := Tracker(as_cuda_rounds, vocabulary=7)):
        with tracker.creating("kv_cache"):
            held = [torch.zeros(1, 1)]
        logits, weight = torch.zeros(2, 7), torch.zeros(7, 2)
        tracker.own([weight], "weights")
    assert {k: v for k, v in tracker.live.items() if v} == {"kv_cache": 512, "logits": 512, "weights": 512}
    del logits, held


def profiled_peak(run) -> int:
    """Bytes that torch's own profiler sees alive at most: the same step with nobody looking on."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    changes = [e.nbytes() for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(changes))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
def test_gradients_of_a_tied_embedding_add_up_as_they_do_when_nobody_looks_on(precision):
    # On an H100 full fine-tuning of a 0.5B model with tied weights took 522 MB less than was predicted: one of them.
    tokens = torch.arange(6)

    def step(embedding):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            hidden = embedding(tokens)
            loss = torch.nn.functional.linear(hidden, embedding.weight).float().logsumexp(-1).sum()
        loss.backward()

    tied = [torch.nn.Embedding(5000, 200) for _ in range(3)]
    step(tied[0])  # what libraries make once
    with (tracker := Tracker()):
        tracker.mark("begin")
        with tracker.unseen():
            tracker.own([tied[1].weight], "weights")
        weights = tracker.live["weights"]
        step(tied[1])
    assert tracker.timeline().peaks()["load"].total - weights == pytest.approx(
        profiled_peak(lambda: step(tied[2])), rel=0.01
    )


@pytest.mark.parametrize(("values", "paged", "states"), [
    (1000, True, 8000), (90_000, True, 180_000 + 2 * 352 * 4), (200_000, True, 2 * 782 * 4),
    (200_000, False, 400_000 + 2 * 782 * 4),
])  # fmt: skip
def test_only_large_states_of_a_paged_optimizer_leave_the_device(values, paged, states):
    # A memory snapshot of an H100: all 576 states of rank 16 at a width of 896 were there.
    parameter = torch.nn.Parameter(torch.zeros(values))
    parameter.grad = torch.zeros(values)
    optimizer = standins.EightBitAdamW([parameter], paged=paged)
    optimizer.step()
    assert sum(s.numel() * s.element_size() for s in optimizer.state[parameter].values()) == states


def test_an_operation_without_a_known_worst_case_says_so():
    from harness.rehearsal.fakes import fake_tensors

    with fake_tensors(cuda=False), Tracker(), pytest.raises(NotImplementedError, match="unique"):
        torch.ones(3).unique()


# -- fakes against real tensors ------------------------------------------------------------------------


def assert_agree(setup: Setup) -> None:
    fake, real = (rehearsed(setup, fake=f).peaks() for f in (True, False))
    assert fake.keys() == real.keys() >= {"train"}
    for phase in fake.keys() - {"load"}:  # transformers loads in threads, which the tracker does not follow
        assert fake[phase].total == pytest.approx(real[phase].total, rel=0.02), phase


@pytest.mark.parametrize(
    ("algo", "adapter"), [("dpo", "full"), ("kto", "qlora"), ("grpo", "lora"), ("orpo", "qlora adapter.bits=8")]
)
def test_a_step_on_fakes_takes_what_the_same_step_takes_on_real_tensors(algo, adapter):
    assert_agree(setup_of(f"algo={algo}", *f"adapter={adapter}".split()))


@pytest.mark.slow
def test_packed_sequences_are_as_long_as_the_limit_and_agree_on_both():
    size = "train.batch_size=4"  # one micro-batch: of several the one that scores most is taken for the last
    packed, plain = (setup_of("algo=sft", "adapter=lora", size, f"algo.packing={on}") for on in ("true", "false"))
    assert_agree(packed)
    assert rehearsed(packed).peaks()["train"].total > 1.1 * rehearsed(plain).peaks()["train"].total, "rows are short"


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["dpo", "kto", "sft"])
def test_rows_that_score_most_count_though_others_are_longer(algo, tmp_path):
    long = [{"prompt": f"{i}" + "1" * 219, "chosen": f"{i}", "rejected": "x"} for i in range(8)]
    said = [{"prompt": f"{i}", "chosen": "2" * 205, "rejected": "3" * 205} for i in range(8)]
    held_out = write_jsonl(tmp_path / "held_out.jsonl", [{"prompt": "1+1=", "chosen": "2", "rejected": "3"}] * 8)

    def setup(name: str, rows: list[dict[str, str]]) -> Setup:
        file = write_jsonl(tmp_path / f"{name}.jsonl", rows)
        files = (f"task.path={file}", f"task.eval_path={held_out}")
        small = [option for option in SMALL if not option.startswith("task.")]
        with hydra_config():
            own = compose([*small, f"algo={algo}", "task=preferences", *files, "adapter=lora", "train.max_length=240"])
        return assemble(own)

    both = rehearsed(setup("both", long + said)).peaks()
    alone = rehearsed(setup("said", said), fake=False).peaks()
    assert_agree(setup("both", long + said))
    for phase in both.keys() & {"train", "reference"}:
        assert alone[phase].total <= both[phase].total * 1.02, phase


def test_a_batch_has_as_many_scored_tokens_as_the_rows_with_most():
    long, short = [7] * 30, [8] * 4
    rows = [{"input_ids": [*long, 1], "completion_mask": [0] * 30 + [1]}] * 3
    rows += [{"input_ids": [*short, 1, 1, 1], "completion_mask": [0] * 4 + [1] * 3}] * 3
    dataset = Dataset.from_list(rows)

    def collate(found: list[Any]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in found)
        padded = {k: torch.tensor([row[k] + [0] * (width - len(row[k])) for row in found]) for k in found[0]}
        return padded | {"attention_mask": torch.ones_like(padded["input_ids"])}

    batch = heaviest_batch(dataset, collate, 2, None)
    assert batch["input_ids"].shape == (2, 31) and int(batch["completion_mask"].sum()) == 2 * 3
    assert heaviest_batch(dataset, collate, 2, 40)["input_ids"].shape == (2, 40)


def matrix() -> list[Any]:
    """Every algorithm, adapter and size; CI takes what is not alike."""

    def seldom(shape: str, algo: str, adapter: str) -> bool:
        new = algo in ("orpo", "rloo", "online_dpo")
        return algo in ALIKE or (new and (shape, adapter) != ("llama-10m", "lora"))

    return [
        pytest.param(*one, marks=pytest.mark.nightly if seldom(*one) else pytest.mark.slow)
        for one in itertools.product(("llama-10m", "llama-110m"), ALGOS, ADAPTERS)
    ]


@pytest.mark.parametrize(("shape", "algo", "adapter"), matrix())
def test_every_algorithm_agrees_at_two_sizes(shape, algo, adapter):
    assert_agree(setup_of(f"model=shape/{shape}", f"algo={algo}", f"adapter={adapter}", "train.batch_size=16"))


@pytest.mark.slow
def test_evaluation_on_fakes_takes_what_it_takes_on_real_tensors():
    judged = (
        "eval=default",
        "~eval.evaluators.lm_eval",
        "eval.batch_size=8",
        "task.eval_pairs=10",
        "task.eval_prompts=10",
    )
    with hydra_config():
        setup = assemble(compose([*(o for o in SMALL if not o.startswith("eval=")), *judged, "algo=dpo"]))
    assert {"baseline", "reference", "evaluate"} <= rehearsed(setup).peaks().keys()
    assert_agree(setup)


@pytest.mark.parametrize("options", [("adapter=lora",), ("adapter=full", "reward.adapter=full")], ids=["shared", "own"])
def test_a_reward_model_is_rehearsed_without_its_weights(options):
    peaks = rehearsed(setup_of("algo=grpo", "reward=model", *options)).peaks()
    assert peaks["rollout"].owners["reward"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("read", ["letters", "words"])
def test_a_local_judge_is_held_while_it_pays_and_while_it_compares(tmp_path, read):
    folder = save_small(tmp_path)
    weights = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters()) * 4
    judge = {"path": str(folder), "read": read}
    pays = [
        "reward=judge",
        "reward.against=answer",
        "task.unanswerable=0",
        "judge@reward.judge=local",
        *(f"reward.judge.{k}={v}" for k, v in judge.items()),
    ]
    peaks = rehearsed(setup_of("algo=grpo", *pays)).peaks()
    assert peaks["rollout"].owners["reward"] == peaks["train"].owners["reward"] == pytest.approx(weights, rel=0.02)

    compares = ["+evaluator@eval.evaluators.seen=judged", "judge@eval.evaluators.seen.judge=local"]
    compares += [f"eval.evaluators.seen.judge.{k}={v}" for k, v in judge.items()]
    with hydra_config():
        setup = assemble(compose([*SMALL, "algo=dpo", *compares]))
    own = OWNERS.index("reward")
    held = [part[:, own].max() for mark, part in rehearsed(setup).stretches() if mark.phase == "evaluate" and len(part)]
    assert max(held) == pytest.approx(weights, rel=0.02) and held[0] == 0


@pytest.mark.slow
def test_what_vllm_may_take_counts_while_it_samples_alone():
    usual, served = (
        rehearsed(setup_of("algo=grpo", f"train.rollout={by}", "train.vllm.memory_gb=2")).peaks()
        for by in ("hf", "vllm")
    )
    assert served["rollout"].owners["engine"] == 2e9 and not usual["rollout"].owners["engine"]
    assert served["train"].owners == usual["train"].owners  # it sleeps


def test_shared_references_leave_no_second_model():
    shared, live = (
        rehearsed(setup_of("algo=dpo", "adapter=full", f"algo.share_reference={on}")).peaks()
        for on in ("true", "false")
    )
    assert (
        shared["train"].owners["reference"] == 0
        and live["train"].owners["reference"] == live["train"].owners["weights"]
    )
    assert shared["reference"].total < shared["train"].total < live["train"].total


# -- what is held beside the trained model -----------------------------------------------------------------

JUDGED = ("algo=sft", "eval.batch_size=4", "eval.evaluators.lm_eval=null", "task.eval_pairs=8", "task.eval_prompts=8")


def judged(*overrides: str) -> Any:
    """The peak of ``evaluate``, with the evaluators that there are by default."""
    with hydra_config():
        setup = assemble(compose([*(o for o in SMALL if o != "eval=none"), *JUDGED, *overrides]))
    return rehearsed(setup).peaks()["evaluate"]


@pytest.mark.slow
def test_after_full_fine_tuning_evaluators_that_compare_hold_the_base_again():
    alone = judged("adapter=full", "eval.evaluators.win_rate=null", "eval.evaluators.behaviour=null")
    beside = judged("adapter=full", "eval.evaluators.behaviour=null")
    assert alone.owners["reference"] == 0
    assert beside.owners["reference"] == pytest.approx(beside.owners["weights"], rel=0.01)
    assert judged("adapter=lora").owners["reference"] == 0  # its adapter is switched off


@pytest.mark.slow
def test_a_win_rates_judge_is_a_model_beside_the_trained_one(tmp_path):
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=1024,
        num_hidden_layers=2,
        intermediate_size=2048,
        num_attention_heads=4,
        num_labels=1,
    )
    judge = LlamaForSequenceClassification(config)
    judge.save_pretrained(tmp_path)
    character_tokenizer(64).save_pretrained(tmp_path)
    weights = sum(p.numel() * 4 for p in judge.parameters())
    level = judged("adapter=lora", f"eval.evaluators.win_rate.judge={tmp_path}")
    assert level.owners["reward"] == pytest.approx(weights, rel=0.01) and level.owners["weights"] > 0


@pytest.mark.slow
def test_what_merging_costs_is_measured_on_a_merged_copy_beside_the_policy():
    asked, quiet = ("+evaluator@eval.evaluators.merge=merge",), ("eval.evaluators.win_rate=null",)
    whole = judged("adapter=lora", *quiet)
    assert whole.owners["reference"] == 0
    for adapter in ("lora", "qlora"):  # the copy is not quantized, whatever the policy is
        level = judged(f"adapter={adapter}", *quiet, *asked)
        assert level.owners["reference"] == pytest.approx(whole.owners["weights"], rel=0.1)  # which has an adapter
    for adapter in ("prompt", "full"):
        assert judged(f"adapter={adapter}", *quiet, "eval.evaluators.behaviour=null", *asked).owners["reference"] == 0


@pytest.mark.slow
def test_points_on_the_way_are_taken_beside_all_that_training_holds():
    quiet = ("eval.evaluators.win_rate=null", "eval.evaluators.behaviour=null")
    live = ("algo=dpo", "algo.share_reference=false")
    before, after = (judged("adapter=full", *live, *quiet, f"eval.at=[{at}]") for at in ("", "0.5"))
    assert before.owners["optimizer"] == 0
    assert after.owners["optimizer"] == pytest.approx(2 * after.owners["weights"], rel=0.01)
    assert after.owners["reference"] == pytest.approx(after.owners["weights"], rel=0.01)


@pytest.mark.slow
def test_points_on_the_way_take_on_fakes_what_they_take_on_real_tensors():
    with hydra_config():
        shown = [o for o in SMALL if o != "eval=none"]
        setup = assemble(compose([*shown, *JUDGED, "algo=grpo", "adapter=lora", "eval.at=[0.5]"]))
    assert_agree(setup)


def test_merging_an_adapter_takes_one_layers_difference_and_no_second_base():
    level = rehearsed(setup_of("algo=sft", "adapter=lora", "train.save=full"), layers=2).peaks()["evaluate"]
    assert 0 < level.total - level.owners["weights"] < 0.2 * level.owners["weights"]


# -- few layers against all ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algo", "adapter", "gpu"),
    [
        ("dpo", "lora", CPU),
        pytest.param("grpo", "qlora", GPU, marks=pytest.mark.slow),
        pytest.param("ppo", "full", GPU, marks=pytest.mark.slow),
    ],
)
def test_a_few_layers_tell_the_peaks_of_all(algo, adapter, gpu):
    setup = setup_of(f"algo={algo}", f"adapter={adapter}")
    few = extended(*(rehearsed(setup, gpu=gpu, layers=n) for n in (3, 4)), 3, 8)
    for phase, level in rehearsed(setup, gpu=gpu).peaks().items():
        assert few[phase].total == pytest.approx(level.total, rel=1e-3), phase
        assert few[phase].owners == pytest.approx(level.owners, rel=1e-2, abs=level.total * 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("sums", [pytest.param(True, id="sums"), pytest.param(False, id="cache")])
def test_what_the_whole_model_has_no_room_for_is_not_in_a_few_layers(monkeypatch, sums):
    """LoRA is added to 8 layers' weights, or a rollout's cache held whole, only where 8 layers' bytes are allowed."""
    setup = setup_of("algo=grpo", "adapter=lora")
    free = rehearsed(setup).peaks()["rollout"].total
    if sums:
        model = setup.model.load(None, dtype=torch.float32, device="cpu", quantization=None)
        heads = {model.get_input_embeddings().weight, model.get_output_embeddings().weight}
        matrices = sum(p.numel() * 4 for p in set(model.parameters()) - heads if p.dim() == 2)
        monkeypatch.setattr(added, "MOST", int(0.9 * matrices))
    else:
        monkeypatch.setattr(generation, "MOST_CACHE", 300_000)
    few = extended(*(rehearsed(setup, layers=n) for n in (3, 4)), 3, 8)
    whole = rehearsed(setup).peaks()["rollout"]
    assert whole.total < 0.99 * free
    assert few["rollout"].total == pytest.approx(whole.total, rel=1e-2)


def test_layers_that_differ_are_not_taken_for_each_other():
    model = skeleton(setup_of().model.configuration(), setup_of().model)
    layers = layers_of(model, 8)
    assert len(layers) == 8 and alike(layers)
    layers[3].mlp.gate_proj = torch.nn.Linear(8, 8, device="meta")
    assert not alike(layers)


# -- what is rehearsed ---------------------------------------------------------------------------------


def test_the_longest_rows_are_chosen_and_repeated():
    setup = setup_of("algo=dpo")
    data = check_data(setup)
    tokenizer = setup.model.tokenizer(None)
    chosen = longest(setup, data, tokenizer, lambda rows: [dict(r) for r in rows]).train_pairs

    def size(row: Any) -> int:
        return len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"]))

    def said(row: Any) -> int:
        return len(row["chosen"]) + len(row["rejected"])

    assert len(chosen) == 2 * 8 and chosen[:4] == chosen[4:8] and chosen[8:12] == chosen[12:]
    assert size(chosen[0]) == max(map(size, data.train_pairs)) and said(chosen[8]) == max(map(said, data.train_pairs))


def test_a_long_accumulation_becomes_a_short_one_and_a_rollout_keeps_its_size():
    setup = setup_of("algo=grpo", "train.batch_size=64", "train.micro_batch_size=8")
    algo, train = shortened(setup, check_data(setup))
    assert (train.batch_size, train.steps) == (16, 1)
    assert algo.rollout(train).prompts == setup.algo.rollout(setup.train).prompts


def test_of_the_batches_of_scoring_the_one_of_most_tokens_is_rehearsed(monkeypatch):
    monkeypatch.setattr("harness.evaluators.scoring.MOST_LOGITS", 2_000)
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=1))
    context: Any = SimpleNamespace(model=SimpleNamespace(config=config), max_length=1_024, batch_size=64)
    scored = [([0] * n, [0]) for n in (1_199, 989, 979)]  # the longest is cut, and alone: two of 990 do fit
    assert sorted(len(prompt) + 1 for prompt, _ in heaviest(context, scored)) == [980, 990]


def test_a_batch_is_lengthened_to_the_limit():
    batch = {"input_ids": torch.tensor([[1, 2], [3, 4]]), "label": torch.tensor([1, 0]), "texts": ["a", "b"]}
    longer = lengthened(batch, 4)
    assert longer["input_ids"].tolist() == [[1, 2, 2, 2], [3, 4, 4, 4]] and longer["label"].shape == (2,)
    assert lengthened(batch, None) is batch


# -- bytes of adapters and quantization ----------------------------------------------------------------


def llama(**sizes: Any) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(LlamaConfig(**{"vocab_size": 32000, **sizes}))


SEVEN_B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
SEVENTY_B = {
    "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 8,
}  # fmt: skip


def test_lora_counts_are_those_of_the_worked_examples():
    from harness.models.adapters import LoRA, lora_parameters

    assert lora_parameters(4096, 4096, 16) == 131_072
    model = llama(**SEVEN_B)
    assert LoRA(rank=16, targets=("q_proj", "v_proj")).expected_trainable(model) == 8_388_608
    assert LoRA(rank=8, targets=("q_proj", "v_proj")).expected_trainable(model) == 4_194_304
    everywhere = LoRA(rank=16).expected_trainable(model)
    assert everywhere == pytest.approx(40e6, rel=0.01)
    assert everywhere / sum(p.numel() for p in model.parameters()) < 0.006


def test_qlora_of_70b_is_near_the_worked_budget():
    from harness.models.adapters import QLoRA

    model = llama(**SEVENTY_B)
    trainable = QLoRA(rank=64).expected_trainable(model)
    assert trainable == pytest.approx(830e6, rel=0.01)
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    values = sum(m.weight.numel() for m in linear)
    bits = {
        double: 8 * sum(sum(standins.four_bit_bytes(m.weight.numel(), double=double).values()) for m in linear) / values
        for double in (False, True)
    }
    assert bits[False] == pytest.approx(4.5, abs=1e-3)
    assert bits[True] == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-3)
    assert (bits[False] - bits[True]) == pytest.approx(0.37, abs=0.01)
    saved_gb = (bits[False] - bits[True]) * values / 8e9
    assert saved_gb == pytest.approx(3.2, abs=0.1)


@pytest.mark.parametrize("double", [True, False])
def test_packed_bytes_are_what_bitsandbytes_stores(double):
    import bitsandbytes as bnb

    from harness.algorithms.roles import tensors_of

    layer = bnb.nn.Linear4bit(512, 384, bias=False, compress_statistics=double, quant_type="nf4")
    layer.load_state_dict({"weight": torch.randn(384, 512)})
    layer.to("cpu")
    stored = sum(t.untyped_storage().nbytes() for t in tensors_of(layer))
    assert sum(standins.four_bit_bytes(512 * 384, double=double).values()) == pytest.approx(stored, rel=0.001)


# -- a policy in pieces --------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [2, 8])
def test_each_of_several_processes_holds_its_share_and_judges_the_whole(processes):
    pieces = (f"parallel.processes={processes}", "parallel.strategy=fsdp2", "train.batch_size=16")
    few = (*pieces, "train.micro_batch_size=1")
    found = rehearsed(setup_of("algo=dpo", "adapter=full", *few)).peaks()
    whole = rehearsed(setup_of("algo=dpo", "adapter=full", "train.micro_batch_size=1")).peaks()["train"].owners
    share = found["train"].owners
    for owner in ("weights", "gradients", "optimizer"):  # the floor of its shards, and not much more
        assert whole[owner] / processes <= share[owner] * 1.001 <= whole[owner] / processes * 1.02, owner
    assert share["activations"] < whole["weights"], "layers are gathered one by one"


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
@pytest.mark.slow
def test_of_an_adapter_in_pieces_the_frozen_base_is_shared_out_too(adapter):
    pieces = ("parallel.processes=4", "parallel.strategy=fsdp2", "train.batch_size=16", "train.micro_batch_size=1")
    share = rehearsed(setup_of("algo=dpo", f"adapter={adapter}", *pieces)).peaks()["train"].owners
    whole = rehearsed(setup_of("algo=dpo", f"adapter={adapter}", "train.micro_batch_size=1")).peaks()["train"].owners
    assert whole["optimizer"] / 4 <= share["optimizer"] * 1.001 <= whole["optimizer"] / 4 * 1.05
    assert whole["weights"] / 4 <= share["weights"] * 1.001 <= whole["weights"] / 4 * 1.1
