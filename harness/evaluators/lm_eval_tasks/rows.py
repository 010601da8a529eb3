"""Rows of the embedded lm-eval tasks; they arrive as the task manager's metadata."""

from __future__ import annotations

from typing import Any


def generate(harness_rows: dict[str, list[dict[str, Any]]], **_: Any) -> dict[str, Any]:
    """Held-out prompts with their answers."""
    return _dataset(harness_rows["generate"])


def choice(harness_rows: dict[str, list[dict[str, Any]]], **_: Any) -> dict[str, Any]:
    """Held-out prompts with four candidate answers."""
    return _dataset(harness_rows["choice"])


def letters(harness_rows: dict[str, list[dict[str, Any]]], **_: Any) -> dict[str, Any]:
    """Letter operations, which alignment never touches."""
    return _dataset(harness_rows["letters"])


def _dataset(rows: list[dict[str, Any]]) -> dict[str, Any]:
    from datasets import Dataset

    return {"test": Dataset.from_list(rows)}
