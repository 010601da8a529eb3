"""Base models: the embedded tiny one, a local or hub model, and random weights at a real shape.

Import-light: torch and transformers are imported when a model is loaded.
"""

from __future__ import annotations
