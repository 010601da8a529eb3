"""The audit of token ids: what a model would really see of a trial's rows, looked at before anything trains.

Text may look well and its ids not: a template without an end of turn, a tokenizer that doubles one, sides that are
equal once a template has stripped their reasoning, prompts that fill the limit. Rows that mean nothing are left out and
counted by reason; what makes the whole run meaningless is an error; the rest is told.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.tasks.base import Row, TaskData, text_of
from harness.tasks.conversation import Style, added_ids, encode_completions, encode_pairs, leaves_out_calls, prompt_ids
from harness.tasks.ids.found import EMPTY, EQUAL, FILLS, FULL, NOTHING, REFUSED, Found, Limits, spoken

CHUNK = 1000
"""Rows encoded at a time: ids of all rows of a large data set would take gigabytes."""
FEW = 0.01
"""Share of rows above which a peculiarity is told in a note, beside the table."""
UNKNOWN = 0.3
"""Share of unknown tokens that makes a tokenizer the wrong one for the data."""
EXAMPLES = 3
SHOWN = 1500
"""Characters of an example; the middle of a longer one is left out."""


def look(data: TaskData, tokenizer: Any, style: Style, limits: Limits, stops: Sequence[int]) -> Found:
    """Encode every row as training, evaluation and rollouts do, and look at the ids.

    Args:
        data: a trial's.
        tokenizer: the model's.
        style: how its rows are rendered.
        limits: see ``Limits``.
        stops: tokens that end a completion.
    """
    audit = _Audit(tokenizer, style, limits, frozenset(stops))
    for kind, rows, room, limit in _kinds(data, limits):
        if rows:
            audit.read(kind, rows, room, limit)
    return audit.found()


def _kinds(data: TaskData, limits: Limits) -> Iterator[tuple[str, Sequence[Row], int, int]]:
    """Kinds of rows with the tokens that their prompt and the whole may have."""
    yield "train_pairs", data.train_pairs, limits.train - 1, limits.train
    yield "train_unpaired", data.train_unpaired, limits.train - 1, limits.train
    if limits.rollout:
        yield "train_prompts", data.train_prompts, limits.train - limits.rollout, limits.train
    for split, rows in data.eval_pairs.items():
        yield f"eval_pairs/{split}", rows, limits.scored - 1, limits.scored
    most = limits.context - limits.sampled if limits.context else 1 << 30
    for split, rows in data.eval_prompts.items():
        yield f"eval_prompts/{split}", rows, most, most


class _Audit:
    """Counts over chunks of rows."""

    def __init__(self, tokenizer: Any, style: Style, limits: Limits, stops: frozenset[int]):
        self.tokenizer, self.style, self.limits, self.stops = tokenizer, style, limits, stops
        self.begins = bool(added_ids(tokenizer)[0])
        self.dropped: dict[str, dict[str, list[int]]] = {}
        self.rows: dict[str, int] = {}
        self.truncated: dict[str, int] = {}
        self.longest: dict[str, int] = {}
        self.seen: Counter[str] = Counter()
        self.examples: list[str] = []
        self.shown: set[tuple[int, ...]] = set()
        self.largest = -1

    def read(self, kind: str, rows: Sequence[Row], room: int, limit: int) -> None:
        """Look at the rows of one kind."""
        self.rows[kind], reasons = len(rows), defaultdict(list)
        self.truncated[kind] = self.longest[kind] = 0
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            for i, found in enumerate(self._encoded(chunk)):
                if isinstance(found, str):
                    reason = found
                else:
                    reason = self._judge(kind, chunk[i], *found, room=room, limit=limit)
                if reason:
                    reasons[reason].append(start + i)
        if reasons:
            self.dropped[kind] = dict(reasons)

    def _encoded(self, rows: Sequence[Row]) -> Iterator[tuple[list[int], list[list[int]]] | str]:
        """Prompt and completions of each row; a text says why there are none."""
        try:
            yield from self._ids(self.style.rows(rows))
        except Exception as error:  # of a stranger's template, about one row among them
            if len(rows) == 1:
                words = " ".join(str(error).split())[:200]
                yield f"{REFUSED}: {words}" if self.style.chat else f"the tokenizer refuses the row: {words}"
                return
            for row in rows:
                yield from self._encoded([row])

    def _ids(self, rows: Sequence[Mapping[str, Any]]) -> list[tuple[list[int], list[list[int]]]]:
        if "chosen" in rows[0]:
            found = encode_pairs(self.tokenizer, rows)
            sides = zip(found["chosen_ids"], found["rejected_ids"], strict=True)
            return [(prompt, list(s)) for prompt, s in zip(found["prompt_ids"], sides, strict=True)]
        if "completion" in rows[0]:
            found = encode_completions(self.tokenizer, rows)
            return [(p, [c]) for p, c in zip(found["prompt_ids"], found["completion_ids"], strict=True)]
        return [(ids, []) for ids in prompt_ids(self.tokenizer, [row["prompt"] for row in rows])]

    def _judge(
        self, kind: str, row: Row, prompt: list[int], sides: list[list[int]], *, room: int, limit: int
    ) -> str | None:
        """Count what is peculiar; the reason why the row is left out, if it is."""
        self.largest = max(self.largest, *(max(ids, default=-1) for ids in (prompt, *sides)))
        self.seen["tokens"] += len(prompt) + sum(map(len, sides))
        if (unknown := self.tokenizer.unk_token_id) is not None:
            self.seen["unknown"] += sum(ids.count(unknown) for ids in (prompt, *sides))
        whole = len(prompt) + max(map(len, sides), default=0)
        if not prompt and text_of(row["prompt"]):
            return NOTHING
        if sides and any(not self._said(side) for side in sides):
            return EMPTY
        if len(sides) == 2 and sides[0] == sides[1]:
            return EQUAL
        if len(prompt) > room:
            return FULL if kind.startswith("eval_prompts") else FILLS
        self.truncated[kind] += whole > limit
        self.longest[kind] = max(self.longest[kind], whole)
        self._count(row, prompt, sides)
        if kind.startswith("train") and len(self.examples) < EXAMPLES:
            if (start := tuple(prompt)) not in self.shown:
                self.shown.add(start)
                self.examples.append(self._shown(prompt, sides, limit))
        return None

    def _said(self, side: Sequence[int]) -> bool:
        """Whether a completion has a token before what ends it."""
        return any(i not in self.stops and self.tokenizer.decode([i]).strip() for i in side)

    def _count(self, row: Row, prompt: list[int], sides: list[list[int]]) -> None:
        begin, seen = self.tokenizer.bos_token_id, self.seen
        seen["sequences"] += 1
        if begin is not None:
            seen["begin 0"] += prompt[:1] != [begin]
        seen["prompt ends"] += bool(prompt) and prompt[-1] in self.stops
        for side in sides:
            seen["completions"] += 1
            ended = [i for i, token in enumerate(side) if token in self.stops]
            seen["ended"] += bool(ended) and not self.tokenizer.decode(side[ended[-1] + 1 :]).strip()
            seen["ends within"] += len(ended) > 1
            if ended:
                seen[f"stop {side[ended[-1]]}"] += 1
        if sides and self.style.chat:
            alone = prompt_ids(self.tokenizer, [self.style.rows([row])[0]["prompt"]])[0] if self._looks() else prompt
            seen["prefix looked at"] += 1
            seen["no prefix"] += len(alone) > len(prompt)
        texts = [row.get(side) for side in ("prompt", "chosen", "rejected", "completion")]
        seen["tool calls"] += any(m.get("tool_calls") for text in texts if isinstance(text, list) for m in text)
        for value in texts[1:]:
            if isinstance(value, list) and any(m["role"] == "user" for m in value):
                seen["user turns"] += 1
                break

    def _looks(self) -> bool:
        """Whether a prompt is rendered once more by itself: the first hundred tell as much as all."""
        return self.seen["prefix looked at"] < 100

    def _shown(self, prompt: list[int], sides: list[list[int]], limit: int) -> str:
        """The first side in its context, its trained tokens marked."""
        if not sides:
            return f"{_middle(self.tokenizer.decode(prompt))}⟦sampled⟧"
        kept = sides[0][: max(0, limit - len(prompt))]
        cut = " … cut at the limit" if len(kept) < len(sides[0]) else ""
        return f"{_middle(self.tokenizer.decode(prompt))}⟦{_middle(self.tokenizer.decode(kept))}⟧{cut}"

    # -- what it comes to --------------------------------------------------------------------------------

    def found(self) -> Found:
        """The findings."""
        facts, notes, refusals = {}, [], []
        for kind, total in self.rows.items():
            kept = total - sum(map(len, self.dropped.get(kind, {}).values()))
            if kind.startswith(("train_pairs", "train_unpaired", "eval_pairs")):
                limit = self.limits.train if kind.startswith("train") else self.limits.scored
                facts[f"{spoken(kind)}: cut at {limit:,} tokens"] = (
                    f"{self.truncated[kind]:,} ({self.truncated[kind] / max(1, kept):.1%}); "
                    f"the longest has {self.longest[kind]:,}"
                )
                if kind.startswith("train") and self.truncated[kind] > kept / 10:
                    cut = f"{self.truncated[kind]:,} of {kept:,} {spoken(kind)} are cut at {limit:,} tokens"
                    notes.append(f"{cut}, the longest has {self.longest[kind]:,} (train.max_length)")
            reasons = self.dropped.get(kind, {})
            if reasons:
                facts[f"{spoken(kind)}: left out"] = "; ".join(f"{len(r):,}, {reason}" for reason, r in reasons.items())
            for reason, rows in reasons.items():
                first = ", ".join(str(i + 1) for i in rows[:3]) + (", …" if len(rows) > 3 else "")
                notes.append(f"{len(rows):,} of {total:,} {spoken(kind)} left out: {reason} (row {first})")
        self._beginnings(facts, notes)
        self._endings(facts, notes)
        self._others(facts, notes, refusals)
        return Found(facts, notes, self.examples, refusals, self.dropped, self.rows, self.longest)

    def _beginnings(self, facts: dict[str, str], notes: list[str]) -> None:
        seen, n = self.seen, max(1, self.seen["sequences"])
        if self.tokenizer.bos_token_id is None:
            return
        with_it = n - seen["begin 0"]
        facts["sequences that begin with the begin token"] = f"{with_it:,} of {n:,}"
        if self.begins and seen["begin 0"] > FEW * n:
            notes.append(
                f"{seen['begin 0']:,} of {n:,} sequences lack the begin token {self.tokenizer.bos_token!r}, which "
                "this tokenizer puts before every text: the chat template leaves it out (fix: begin "
                "chat_template.jinja with {{ bos_token }})"
            )

    def _endings(self, facts: dict[str, str], notes: list[str]) -> None:
        seen, n = self.seen, self.seen["completions"]
        if not n:
            return
        names = {self.tokenizer.decode([i]): seen[f"stop {i}"] for i in self.stops if seen[f"stop {i}"]}
        told = ", ".join(f"{name!r} {count:,}" for name, count in names.items()) or "none"
        facts["completions that end with a stop token"] = f"{seen['ended']:,} of {n:,} ({told})"
        if seen["ended"] < (1 - FEW) * n:
            stops = ", ".join(repr(self.tokenizer.decode([i])) for i in sorted(self.stops))
            notes.append(
                f"{n - seen['ended']:,} of {n:,} completions do not end with a token that ends a reply ({stops}), so "
                "the model does not learn to stop (fix: end a reply with one in chat_template.jinja, or name the token "
                "that the template ends it with: model.stop_tokens=[...])"
            )
        if seen["ends within"] > FEW * n:
            notes.append(f"{seen['ends within']:,} of {n:,} completions hold an end token before their last one")

    def _others(self, facts: dict[str, str], notes: list[str], refusals: list[dict[str, str]]) -> None:
        seen, n, tokens = self.seen, max(1, self.seen["sequences"]), max(1, self.seen["tokens"])
        if seen["prompt ends"] > FEW * n:
            notes.append(
                f"{seen['prompt ends']:,} of {n:,} prompts end with an end token: the reply would come after the end"
            )
        if self.style.folds_system:
            notes.append("the chat template refuses system messages; they stand at the head of the first user turn")
        if seen["no prefix"]:
            share = f"{seen['no prefix']:,} of the first {min(100, seen['prefix looked at']):,} prompts"
            facts["prompts that the whole sequence does not begin with"] = share
            notes.append(
                f"{share} are rendered otherwise before a reply than within one; the reply begins where the two part"
            )
        if seen["user turns"]:
            facts["rows with a user's turn in a completion"] = f"{seen['user turns']:,} of {n:,}"
            notes.append(f"{seen['user turns']:,} of {n:,} rows train on a user's turn within the completion")
        if seen["tool calls"] and leaves_out_calls(self.tokenizer):
            facts["rows whose tool calls the chat template leaves out"] = f"{seen['tool calls']:,} of {n:,}"
            notes.append(f"the chat template leaves out the tool calls of {seen['tool calls']:,} of {n:,} rows")
        if seen["unknown"]:
            facts["unknown tokens"] = f"{seen['unknown']:,} ({seen['unknown'] / tokens:.2%})"
            if seen["unknown"] > FEW * tokens:
                notes.append(f"{seen['unknown'] / tokens:.1%} of all tokens are unknown to the tokenizer")
        if seen["unknown"] > UNKNOWN * tokens:
            refusals.append(
                {
                    "key": "model",
                    "rule": f"{seen['unknown'] / tokens:.0%} of the data's tokens are unknown to its tokenizer",
                    "fix": "see that the tokenizer's files are whole and are the model's own",
                }
            )
        if self.limits.vocabulary is not None and self.largest >= self.limits.vocabulary:
            refusals.append(
                {
                    "key": "model",
                    "rule": f"the tokenizer gives the id {self.largest}, and the model's embedding matrix has "
                    f"{self.limits.vocabulary} rows",
                    "fix": "take the tokenizer that belongs to the model, or resize the model's embeddings to it",
                }
            )
        if self.rows and not seen["sequences"] and all(NOTHING in r for r in self.dropped.values()):
            refusals.append(
                {
                    "key": "model",
                    "rule": "its tokenizer makes nothing of any text",
                    "fix": "see that tokenizer.json (or tokenizer.model) is there and whole",
                }
            )


def _middle(words: str) -> str:
    return words if len(words) <= SHOWN else f"{words[: SHOWN // 2]} … {words[-SHOWN // 2 :]}"
