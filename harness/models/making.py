"""Models that must be made before they can be loaded: once, in the cache."""

from __future__ import annotations

from pathlib import Path

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
