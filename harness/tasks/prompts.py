"""Prompts with answers that can be checked, from the columns of a table. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from string import Formatter
from typing import Any, NoReturn

from harness.base.errors import UserError
from harness.tasks.base import Row
from harness.tasks.judging import patterns
from harness.tasks.judging.answers import stated_answer
from harness.tasks.reading.messages import EMPTY_PROMPT, Malformed, Skip, is_blank
from harness.tasks.reading.rows import Layout, Table, layout_of, unescaped

USUAL = "answer"
ANSWERS = ("solution", "final_answer", "ground_truth", "target", "label")
QUESTIONS = ("question", "problem", "instruction", "query", "input")
"""Names of columns that are taken where ours are not there."""
MARKS = ("####", "\\boxed")
"""How a worked solution marks its answer."""


@dataclass(frozen=True)
class Prompts:
    """How a row becomes a prompt.

    Attributes:
        columns: our column -> the table's, where the names differ.
        answer_column: handed on as ``answer``, to verifiers.
        answer_pattern: regular expression whose first group in the answer column is the answer (last match).
        prompt_template: makes the prompt of ``{column}`` fields.
        system_prompt: makes the prompt a conversation that this system message opens.
    """

    columns: Mapping[Any, str]
    answer_column: str | None = None
    answer_pattern: str | None = None
    prompt_template: str | None = None
    system_prompt: str | None = None

    def check(self) -> None:
        """What fields demand of each other; raises ``ValueError``."""
        if self.answer_pattern is not None:
            if self.answer_column is None:
                raise ValueError("answer_pattern needs answer_column")
            if (wrong := patterns.problem(self.answer_pattern)) is not None:
                raise ValueError(f"answer_pattern is no regular expression: {wrong}")
        if self.prompt_template is not None:
            template_fields(self.prompt_template)

    @property
    def read(self) -> set[str]:
        """The columns that it reads beside ours."""
        return {*template_fields(self.prompt_template or ""), *([self.answer_column] if self.answer_column else ())}

    def parser(self, table: Table) -> partial[Row]:
        """A function of one row; raises ``UserError`` where the table lacks a column."""
        if self.answer_column == USUAL and USUAL not in table.columns:
            other = next((name for name in ANSWERS if name in table.columns), USUAL)
            return replace(self, answer_column=other).parser(table) if other != USUAL else self._absent(table, [USUAL])
        needed = list(template_fields(self.prompt_template)) if self.prompt_template is not None else []
        needed += [self.answer_column] if self.answer_column is not None else []
        if absent := [name for name in needed if name not in table.columns]:
            self._absent(table, absent)
        if self.prompt_template is None:
            columns = dict(self.columns)
            if columns.get("prompt", "prompt") == "prompt" and "prompt" not in table.columns:
                columns["prompt"] = next((name for name in QUESTIONS if name in table.columns), "prompt")
            layout = layout_of(table, columns, kind="prompts")
        else:
            layout = Layout("prompts", {name: name for name in needed}, table.encoded)
        return partial(self._row, layout=layout)

    def _absent(self, table: Table, absent: list[str]) -> NoReturn:
        raise UserError(
            f"the columns {', '.join(absent)} are not there; found: {', '.join(table.columns)}",
            key="task.answer_column" if absent == [self.answer_column] else "task.prompt_template",
            value=table.name,
            fix="name columns that exist",
        )

    def _row(self, raw: Row, layout: Layout) -> Row:
        """One prompt row, with its answer where there is one."""
        if self.prompt_template is None:
            prompt = layout.text(raw, "prompt")
        else:
            values = {name: layout.value(raw, name) for name in template_fields(self.prompt_template)}
            for column, value in values.items():
                if not isinstance(value, str | int | float):
                    raise Malformed("must be text or a number to stand in a template", column=column, value=value)
            if not any(str(value).strip() for value in values.values()):
                raise Skip(EMPTY_PROMPT)
            prompt = str(unescaped(self.prompt_template)).format_map(values)
        if is_blank(prompt):
            raise Skip(EMPTY_PROMPT)
        if self.system_prompt is not None:
            turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            if turns[0]["role"] != "system":
                prompt = [{"role": "system", "content": str(unescaped(self.system_prompt))}, *turns]
        if self.answer_column is None:
            return {"prompt": prompt}
        return {"prompt": prompt, "answer": self._answer(raw.get(self.answer_column))}

    def _answer(self, value: Any) -> str:
        if not isinstance(value, str | int | float):
            raise Malformed("the answer must be text or a number", column=self.answer_column, value=value)
        text = str(value)
        if self.answer_pattern is not None:
            try:
                found = patterns.last_match(self.answer_pattern, text)
            except TimeoutError:
                raise Malformed(
                    f"task.answer_pattern takes more than {patterns.LIMIT_S:g} s for it",
                    column=self.answer_column,
                    value=value,
                ) from None
            if found is None:
                raise Skip(f"{self.answer_column} does not match task.answer_pattern")
            text = found.group(1) if found.re.groups else found.group()
        elif any(mark in text for mark in MARKS):  # a worked solution: what it states is the answer
            text = stated_answer(text) or ""
        if not text.strip():
            raise Skip("the answer is empty")
        return text.strip()


def template_fields(template: str) -> tuple[str, ...]:
    """The distinct ``{column}`` fields of a template; raises ``ValueError`` where one is no plain name."""
    names = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    if odd := [name for name in names if not name or not re.fullmatch(r"[^\d.\[\]{}][^.\[\]{}]*", name)]:
        raise ValueError(f"prompt_template: {{{odd[0]}}} is no column name (write {{{{ and }}}} for braces)")
    return tuple(dict.fromkeys(names))
