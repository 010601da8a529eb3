"""Base models: the embedded tiny one, a local or hub model, and random weights at a real shape."""

from harness.models.base import Model, context_length
from harness.models.hub import HF
from harness.models.shape import Shape
from harness.models.tiny import Tiny, base_entries

__all__ = ["HF", "Model", "Shape", "Tiny", "base_entries", "context_length"]
