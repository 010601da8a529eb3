"""Base models: the embedded tiny one, a local or hub model, and random weights at a real shape."""

from harness.models.base import Model, context_length
from harness.models.hub import HF
from harness.models.shape import Shape
from harness.models.tiny import Tiny, base_entries
from harness.models.wheel import Wheel

__all__ = ["HF", "Model", "Shape", "Tiny", "Wheel", "base_entries", "context_length"]
