"""Checks that need transformers, made in a child before the first trial: tokenizer, context, targets."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from harness.base.errors import Mismatch, UserError, UserErrors
from harness.base.streams import silence
from harness.config.devices import gpu_visible
from harness.config.rollout import rollout_problems_here
from harness.config.theirs import as_theirs, is_own, own_classes
from harness.models.adapters import Adapter, trainable_in
from harness.models.loading import FLEX
from harness.models.meta_model import skeleton
from harness.store.cache import Cache
from harness.sweep.own_checks import (
    adapter_problems,
    base_rows_problems,
    evaluator_problems,
    model_problems,
    name_problems,
    own_evaluators,
    own_rewards,
    reward_problems,
)

if TYPE_CHECKING:
    from harness.sweep.expand import Sweep
    from harness.tasks.base import Row, TaskData
    from harness.trial.assemble import Setup

T = TypeVar("T")
TEMPLATE = "model.chat_template"
TEMPLATE_S = 10.0
"""Within which a prompt is rendered and tokenized; it takes milliseconds."""
TARGETS = "adapter.targets=all-linear or names that the model has; adapter=full where it has no linear layers"
CAPS = re.compile(r"^(?!.*(attn|attention|router)).*logit.*cap", re.IGNORECASE)
KNOWN_CAPS = ("final_logit_softcapping",)
"""Of the names by which a configuration caps the logits of its head, those that TRL's losses read too."""
USUAL_RANK = 64
TRIED = 20
"""Rows of which the template must render one."""


def check(sweep: Sweep) -> dict[str, UserErrors]:
    """Errors per trial id; trials on the embedded model are known to be well.

    The checks import transformers, so they run in a child of the forkserver and the parent stays light.
    """
    asked = [p for p in sweep.points if _needs_checking(p.setup)]
    if not asked:
        return {}
    from harness.runner import forkserver

    plains = [(json.dumps(dict(p.setup.plain)), p.trial.digests["dataset"]) for p in asked]
    try:  # twice: its server may have been killed, or the machine short of memory for a moment
        answers = forkserver.asked(_main, plains, name="checks", tries=2)
    except forkserver.Ended as ended:
        own = [named for p in asked for named in own_classes(p.setup.plain)]
        rule = f"the process that looks at models and data ended with code {ended.code}"
        fix = "-9 is mostly a lack of memory; look for what is very large in the model's folder"
        if own and (ended.code or 0) >= 0:  # nobody killed it
            rule = f"{rule}: something in it ends Python; your own are {', '.join(name for _, name in own)}"
            fix = "raise an exception in place of sys.exit(), exit() and os._exit()"
        raise UserErrors([UserError(rule, key=own[0][0] if own else "model", fix=fix)]) from None
    return {point.trial.trial_id: UserErrors(errors) for point, errors in zip(asked, answers, strict=True) if errors}


def _needs_checking(setup: Any) -> bool:
    """The embedded model at its own size is known to be well, under the package's adapters and the task's prompts."""
    own = any(is_own(part) for part in (setup.algo, setup.adapter, setup.task))
    own = own or setup.adapter.names_modules
    own = own or (setup.rank or 0) > USUAL_RANK or setup.model.attention is not None or setup.train.rollout != "hf"
    if setup.prompt or not setup.model.embedded or own or own_rewards(setup.reward) or own_evaluators(setup):
        return True
    standard = type(setup.model)()
    return (setup.model.hidden, setup.model.intermediate, setup.model.context, setup.train.max_length) != (
        standard.hidden,
        standard.intermediate,
        standard.context,
        96,
    )


def _main(sender: Any, plains: list[tuple[str, str]]) -> None:
    silence(1, 2)  # library chatter; what matters is sent
    cache: dict[str, list[UserError]] = {}
    answers = []
    for text, digest in plains:
        plain = json.loads(text)
        key = json.dumps(_read(plain), sort_keys=True)
        if key not in cache:
            try:
                cache[key] = find_problems(plain, digest)
            except Exception as error:  # a library's, about files of the user's: its words are all that is known
                if any(own_classes(plain)):
                    cache[key] = [as_theirs(error, plain)]
                else:
                    words = next(iter(str(error).strip().splitlines()), "")
                    rule = f"cannot be checked ({type(error).__name__}: {words[:300]})"
                    cache[key] = [UserError(rule, key="model", fix="see that the model's folder is whole")]
        answers.append(cache[key])
    sender.send(answers)
    sender.close()
    os._exit(0)


def _read(plain: dict[str, Any]) -> list[Any]:
    """What of a configuration ``find_problems`` reads."""
    lengths = [(plain.get("eval") or {}).get(k) for k in ("max_length", "max_completion_length")]
    groups = [plain.get(k) for k in ("model", "task", "prompt", "adapter", "train", "reward")]
    groups.append((plain.get("eval") or {}).get("evaluators"))
    return [*groups, lengths, (plain.get("algo") or {}).get("_target_")]


def find_problems(plain: dict[str, Any], digest: str | None = None) -> list[UserError]:
    """What is wrong with a trial's model, tokenizer and lengths, without loading a weight.

    Args:
        plain: its composed configuration.
        digest: of the rows that another process has read; None where none has.
    """
    from harness.models.making import source_of, tokenizer_of
    from harness.trial.assemble import assemble
    from harness.trial.checks import check_data, same_rows
    from harness.trial.data import cache_of

    try:
        setup = assemble(plain)
        data = check_data(setup)
        same_rows(setup, data, digest)
        cache = cache_of(setup)
        source = source_of(setup.model, cache)
        config = setup.model.configuration(source)
        tokenizer = tokenizer_of(setup.model, source)
    except UserErrors as errors:
        return errors.errors
    except UserError as error:
        return [error]
    context = _context_problems(setup, config)
    found = [*setup.model.checkpoint_problems(source), *_vocabulary_problems(tokenizer, config), *context]
    rows = [] if found else _row_problems(setup, data, tokenizer, cache, source)
    own = [
        *name_problems(setup),
        *base_rows_problems(setup),
        *model_problems(setup, config, source),
        *reward_problems(setup, data),
        *evaluator_problems(setup, data),
    ]
    found += _head_problems(setup, config)
    return [
        *found,
        *rows,
        *rollout_problems_here(setup.train, cpu=_on_cpu(setup)),
        *(_attention_problems(setup, config) or _target_problems(setup, config)),
        *own,
    ]


def _in_time(ask: Callable[[], T], limit_s: float = TEMPLATE_S) -> T:
    """What ``ask`` renders. A chat template is a program of a stranger's, so it gets its time.

    Raises:
        UserError: it takes longer, is refused by its sandbox or complains; with its own words.
    """

    def late(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        return ask()
    except TimeoutError:
        raise _template_error(f"takes more than {limit_s:g} s for a prompt") from None
    except Exception as error:  # Jinja's kinds, and whatever Python raises in the middle of a template
        raise _template_error(f"cannot be rendered ({type(error).__name__}: {error})") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _template_error(rule: str) -> UserError:
    return UserError(
        f"the tokenizer's chat template {rule}",
        key=TEMPLATE,
        fix="mend the template in the model's folder (chat_template.jinja), use rows in the form that it wants, or "
        "model.chat_template=off for rows of text",
    )


def _context_problems(setup: Setup, config: Any) -> list[UserError]:
    """Limits within the model's context."""
    from harness.models import context_length

    limit = None if config is None else context_length(config)
    if limit is None or setup.train.max_length <= limit:
        return []
    return [
        UserError(
            f"is beyond the model's context of {limit} tokens",
            key="train.max_length",
            value=setup.train.max_length,
            fix=f"train.max_length={limit}",
        )
    ]


def _vocabulary_problems(tokenizer: Any, config: Any) -> list[UserError]:
    """A tokenizer whose ids the embedding matrix does not have.

    But for an unknown token: classes of byte-level tokenizers add one, which no text ever becomes.
    """
    rows = None if config is None else getattr(config.get_text_config(), "vocab_size", None)
    largest = max((i for i in tokenizer.get_vocab().values() if i != tokenizer.unk_token_id), default=-1)
    largest = max(largest, *(i or 0 for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)))
    if rows is None or largest < rows:
        return []
    return [
        UserError(
            f"the tokenizer's ids go up to {largest}, and the model's embedding matrix has {rows} rows",
            key="model",
            fix="take the tokenizer that belongs to the model, or resize the model's embeddings to it",
        )
    ]


def _row_problems(setup: Setup, data: TaskData, tokenizer: Any, cache: Cache, source: Path | None) -> list[UserError]:
    """What the audit of token ids refuses; templates are tried on one prompt first."""
    from harness.tasks.conversation import encode
    from harness.trial.data import style_for, usable

    rows = data.train_pairs or data.train_unpaired or data.train_prompts
    try:
        if tokenizer.chat_template:
            style = _in_time(lambda: style_for(setup, data, tokenizer))
            if style.chat and rows:
                _in_time(lambda: _any_of(rows, lambda row: encode(tokenizer, style.rows([row])[0]["prompt"])))
        else:
            style = style_for(setup, data, tokenizer)
        usable(setup, data, tokenizer, style, cache, source)
    except UserErrors as errors:
        return errors.errors
    except UserError as error:
        return [error]
    return []


def _any_of(rows: Sequence[Row], render: Callable[[Row], Any]) -> None:
    """Render one of the first rows; the first one's error where the template refuses them all."""
    first: Exception | None = None
    for row in rows[:TRIED]:
        try:
            render(row)
            return
        except TimeoutError:
            raise
        except Exception as error:  # see ``_in_time``
            first = first or error
    if first is not None:
        raise first


def _attention_problems(setup: Setup, config: Any) -> list[UserError]:
    """The architecture must have the implementation that is asked for, and the device its backward pass."""
    if (asked := setup.model.attention) is None or config is None:
        return []
    if asked == FLEX and setup.algo.trains and _on_cpu(setup):
        rule, fix = "has no backward pass on a CPU", "model.attention=sdpa, or a GPU"
        return [UserError(rule, key="model.attention", value=asked, fix=fix)]
    try:
        skeleton(config, setup.model)
    except UserError as error:
        return [error]
    return []


def _on_cpu(setup: Setup) -> bool:
    return setup.plain["runner"].get("device") == "cpu" or not gpu_visible()


def _target_problems(setup: Setup, config: Any) -> list[UserError]:
    """Adapter targets must exist and quantization must find linear layers; checked on the meta device."""
    adapter = setup.adapter
    if found := adapter_problems(adapter):
        return found
    if config is None or adapter.peft_config() is None:
        return []
    try:
        model: Any = skeleton(config, setup.model)
    except UserError as error:
        return [error]
    shapes = adapter.adapted_shapes(model)
    narrow = sorted({d_in for d_in, _ in shapes or () if d_in % adapter.width_multiple})
    if adapter.quantized and narrow and _on_cpu(setup):
        return [
            Mismatch(
                f"4-bit layers on a CPU must have widths that are multiples of {adapter.width_multiple}, and the model "
                f"has {narrow}",
                key="adapter",
                value=adapter.name,
                fix="adapter.bits=8 or adapter=lora for such a model, or a GPU",
            )
        ]
    targets = setup.plain["adapter"].get("targets")
    key, value = ("adapter", adapter.name) if targets is None else ("adapter.targets", targets)
    if shapes == []:
        rule = "no linear layer of the model has such a name, so there is nothing to adapt"
        return [Mismatch(rule, key=key, value=value, fix=TARGETS)]
    if shapes and adapter.rank is not None and adapter.rank > (widest := max(max(shape) for shape in shapes)):
        rule = (
            f"is more than the widest layer has ({widest:,}), and a product of that rank is no smaller than the layer"
        )
        return [UserError(rule, key="rank", value=adapter.rank, fix="rank=16, or adapter=full")]
    try:
        wrapped = adapter.wrapped_empty(model)
        found = told = trainable_in(wrapped)
        if type(adapter).expected_trainable is not Adapter.expected_trainable:
            told = adapter.expected_trainable(model)
    except Exception as error:  # peft's, about a stranger's architecture, or the adapter's own
        rule = f"peft cannot adapt this model ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
        return [Mismatch(rule, key=key, value=value, fix=TARGETS)]
    if setup.algo.trains and adapts_head(wrapped):
        rule = "adapts the output head, whose weights every loss here reads past the adapter: it would not be trained"
        fix = "leave the head out of the targets, or train it whole: modules_to_save of an adapter=peft adapter.config"
        return [UserError(rule, key=key, value=value, fix=fix)]
    if setup.train.rollout == "vllm" and adapts_tied_embedding(wrapped):
        rule = "adapts the embedding to which the output head is tied: vLLM holds the two as one and would change both"
        return [UserError(rule, key=key, value=value, fix="leave the embedding out of it, or train.rollout=hf")]
    if adapter.off_is_base and (own := trained_of_base(model, wrapped)):
        rule = f"trains weights of the base itself ({', '.join(own[:2])}{', …' if len(own) > 2 else ''}), which stay "
        rule += "changed when the adapter is off: the reference would move along"
        fix = "bias: none in the configuration of the adapter; modules_to_save trains copies"
        return [UserError(rule, key=key, value=value, fix=fix)]
    if not found:
        rule = "nothing of the model is trainable under it"
        return [UserError(rule, key="adapter", value=adapter.name, fix="leave inference_mode out of peft_config()")]
    if found != told:
        rule = f"expected_trainable() says {told:,} parameters of this model, and peft makes {found:,} trainable"
        return [UserError(rule, key="adapter", value=adapter.name, fix="count what peft_config() adapts")]
    return []


def trained_of_base(model: Any, wrapped: Any) -> list[str]:
    """Names of the base's own weights that are trained under an adapter."""
    names = {name for name, _ in model.named_parameters()}
    trained = [name for name, weight in wrapped.named_parameters() if weight.requires_grad]
    plain = [name.removeprefix("base_model.model.").replace(".base_layer.", ".") for name in trained]
    return [name for name in plain if name in names]


def _head_problems(setup: Setup, config: Any) -> list[UserError]:
    """Training's losses read the output head by themselves, and know one cap of its logits."""
    if config is None or not setup.algo.trains:
        return []
    for name, size in config.get_text_config().to_dict().items():
        if CAPS.search(name) and name not in KNOWN_CAPS and size:
            rule = f"caps its logits by {name}={size}, which the losses of training do not know"
            value = getattr(setup.model, "path", None) or setup.model.name
            return [UserError(rule, key="model", value=value, fix="algo=none, or another architecture")]
    return []


def adapts_head(wrapped: Any) -> bool:
    """Whether peft put an adapter onto the output head of a model: TRL multiplies by the head's own weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(wrapped.get_base_model().get_output_embeddings(), BaseTunerLayer)


def adapts_tied_embedding(wrapped: Any) -> bool:
    """Whether peft changes an embedding, in place or by a copy, whose weights the model's output head has too."""
    base = wrapped.get_base_model()
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    own = [name for name, _ in embedding.named_parameters()]
    return own != ["weight"] and any(w is getattr(head, "weight", None) for w in embedding.parameters())
