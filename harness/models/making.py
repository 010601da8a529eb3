"""Models that must be made before they can be loaded: once, in the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.config import closure, identity
from harness.models.base import Model
from harness.store.cache import Cache, Entry

STAGE = "model"


def source_of(model: Model, cache: Cache) -> Path | None:
    """Where a model that had to be made is; None where it is there already, or where a trial's stage makes it."""
    entry = made(model, cache)
    return None if entry is None else entry.path


def made(model: Model, cache: Cache) -> Entry | None:
    """The folder of a model that had to be made (an adapter in its base, a GGUF file); None where it is there already.

    Raises:
        UserError: it cannot be made of these files.
    """
    ingredients = model.ingredients()
    if ingredients is None:
        return None
    inputs = {
        **ingredients,
        "code": closure.code_digest(closure.closure([type(model).__module__])),
        "versions": identity.library_versions(),
    }
    return cache.fetch(STAGE, identity.digest(inputs), model.make, inputs=inputs)


def tokenizer_of(model: Model, source: Path | None) -> Any:
    """A model's tokenizer, which must be one.

    Raises:
        UserError: it is none.
    """
    tokenizer = model.tokenizer(source)
    lacking = [name for name in ("encode", "decode", "get_vocab", "eos_token_id") if not hasattr(tokenizer, name)]
    if not lacking:
        odd = [token for token in tokenizer("a")["input_ids"] if not isinstance(token, int)]
        if not odd:
            return tokenizer
        rule = f"its tokenizer gives {odd[0]!r} among the ids of 'a'"
        raise UserError(rule, key="model", value=type(model).__name__, fix="give it the special tokens that it adds")
    rule = f"tokenizer() gives a tokenizer of transformers, not {tokenizer!r:.60}"
    raise UserError(rule, key="model", value=type(model).__name__, fix="return AutoTokenizer.from_pretrained(...)")


SIZES = ("hidden_size", "num_hidden_layers", "vocab_size")


def loaded_as_said(model: Any, config: Any) -> Any:
    """What ``load()`` of a model gave, which must be the model that its ``configuration()`` is of.

    Raises:
        UserError: it is none, or of another size: plans and checks would be of another model.
    """
    own = getattr(model, "config", None)
    if own is None or not callable(getattr(model, "generate", None)):
        rule = f"load() gives a causal language model of transformers, not a {type(model).__name__}"
        raise UserError(rule, key="model", fix="return what AutoModelForCausalLM.from_pretrained or from_config gives")
    said, found = ({name: getattr(c.get_text_config(), name, None) for name in SIZES} for c in (config or own, own))
    if odd := [f"{name} {found[name]}, and not {said[name]}" for name in SIZES if found[name] != said[name]]:
        rule = f"load() gives a model with {'; '.join(odd)} as configuration() says"
        raise UserError(rule, key="model", fix="let both speak of one model")
    return model
