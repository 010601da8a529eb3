"""``harness data``: what a trial would learn from, without training: rows, what is odd about them, and their tokens."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

from harness.base.commandline import Parser
from harness.base.errors import UserError, UserErrors

EPILOG = """\
examples:
  python -m harness data task=preferences task.path=prefs.jsonl model=hf model.path=./my-model
  python -m harness data task=problems task.path=problems.jsonl algo=grpo --format md
"""
WIDE = 110
NO_MODEL = (
    "no model is named, and the embedded one is not for these rows: name yours to see their tokens and what it cannot "
    "take (model=hf model.path=./my-model, or model=smollm2); a trial needs one too"
)


def main(argv: list[str]) -> int:
    """Print the card; exit code 2 where a trial on these rows would be refused."""
    parser = Parser("data", __doc__ or "")
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EPILOG
    parser.add_argument("--format", choices=("text", "md"), default="text", help="default: %(default)s")
    parser.add_argument("--config-dir", help="a folder with YAML of your own")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for a trial: task=..., model=...")
    try:
        options = parser.parse_args(argv)
    except SystemExit:  # --help
        return 0
    page, errors = shown(options.overrides, options.config_dir, markdown=options.format == "md")
    print(page)
    if errors:
        raise UserErrors(errors)
    return 0


def shown(overrides: list[str], config_dir: str | None, *, markdown: bool) -> tuple[str, list[UserError]]:
    """The card of a trial's data, and why the trial would be refused.

    Raises:
        UserError: the rows or the tokenizer cannot be read at all.
    """
    import transformers

    from harness.config.compose import compose, hydra_config
    from harness.models.making import source_of
    from harness.tasks.audit import card
    from harness.trial.assemble import assemble
    from harness.trial.data import audited, cache_of, load_data, looked_at, style_for

    transformers.logging.set_verbosity_error()  # what it would say of lengths is said here
    with hydra_config([config_dir] if config_dir else []):
        plain = compose(["sweep=data", *overrides])
    setup = assemble(plain)
    cache = cache_of(setup)
    data = load_data(setup.task, cache)
    if setup.model.task_problems(setup.task) and not any(o.startswith("model") for o in overrides):
        return _of_no_model(setup, data, markdown=markdown), []
    source = source_of(setup.model, cache)
    tokenizer = setup.model.tokenizer(source)
    found = looked_at(setup, data, tokenizer, style_for(setup, data, tokenizer), cache, source)
    seen, notes = audited(data), [*data.notes, *found.notes, *_told(setup, data)]
    title = type(setup.task).__name__.lower()
    if markdown:
        page = card(seen, title=title, digest=data.digest, more=found.facts, notes=notes, examples=found.examples)
    else:
        page = plain_card({**seen.facts, **found.facts}, notes, found.examples, leaks=len(seen.leaks))
    problems = found.problems(setup.task.allow_skipped)
    return page, [*setup.model.task_problems(setup.task), *problems]


def _told(setup: Any, data: Any) -> list[str]:
    """What a sweep says of held-out rows before it starts."""
    from harness.tasks.audit import few_prompts, one_answer

    return [line for told in (few_prompts, one_answer) for line in told(data, setup.eval.split)]


def _of_no_model(setup: Any, data: Any, *, markdown: bool) -> str:
    """What can be said of rows before there is a model whose tokens they become."""
    from harness.tasks.audit import card
    from harness.trial.data import audited

    seen, notes = audited(data), [*data.notes, *_told(setup, data), NO_MODEL]
    if markdown:
        return card(
            seen, title=type(setup.task).__name__.lower(), digest=data.digest, more={}, notes=notes, examples=[]
        )
    return plain_card(dict(seen.facts), notes, [], leaks=len(seen.leaks))


def plain_card(facts: dict[str, str], notes: list[str], examples: list[str], *, leaks: int) -> str:
    """The same for a terminal."""
    width = max(map(len, facts), default=0)
    lines = ["rows", *(f"  {name:<{width}}  {what}" for name, what in facts.items())]
    lines.append(f"  {'held-out prompts that training shows':<{width}}  {leaks:,}")
    if notes:
        lines += ["", "notes"]
        for note in notes:
            lines += textwrap.wrap(note, WIDE, initial_indent="  - ", subsequent_indent="    ")
    if examples:
        lines += ["", "what the model sees (trained tokens between ⟦ and ⟧)"]
        for number, example in enumerate(examples, start=1):
            lines += [f"  {number}.", *(f"    {line}" for line in example.splitlines())]
    return "\n".join(lines)
