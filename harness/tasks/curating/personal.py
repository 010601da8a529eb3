"""Personal data in text, by named patterns; a checksum or a range decides wherever there is one. Pure.

What looks alike and is none: versions (``1.2.3.4`` after ``v`` or ``version``), section numbers, addresses that
identify nobody (private networks, documentation), order numbers whose check digit is wrong, and sums.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from harness.tasks.base import Text

Pattern = Literal["card", "iban", "ssn", "ip", "email", "phone"]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
"""In the order in which they are looked for: digits of a card are no phone number."""

_CARD = re.compile(r"(?<![\w.,+-])\d(?:[ -]?\d){12,18}(?![\w-]|[.,]\d)")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}")
_SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
_IP4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_IP6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![\w:])")
_EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9][\w.+%-]{0,63}@((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,8}[A-Za-z]{2,24})(?![\w-])"
)
_PHONE = re.compile(
    r"(?<![\w.,+/-])(?:"
    r"\+[1-9]\d{0,2}(?:[ .-]?\(\d{1,4}\))?(?:[ .-]?\d{1,5}){2,6}"  # international
    r"|(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4}"  # North American
    r")(?![\w-]|[.,]\d)"
)
_VERSION = re.compile(
    r"(?:\bv(?:ersion|er)?s?|\brelease|\bbuild|\brevision|\bsection|§|[A-Za-z]/|==|>=|<=|~=)[ .:]*$", re.I
)
_SUM = re.compile(r"[\d)=*/^x]\s+$")
NOBODYS = ("example.com", "example.org", "example.net", "example.edu")
"""Domains that RFC 2606 reserves, as ``.test``, ``.example``, ``.invalid`` and ``.localhost`` are."""
RESERVED = (".test", ".example", ".invalid", ".localhost")
BEFORE = 24
"""Characters before a match that are looked at."""
IBAN_LENGTHS: Mapping[str, int] = {
    part[:2]: int(part[2:]) for part in (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29"
    " ES24 FI18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20"
    " LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25"
    " QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20").split()
}  # fmt: skip
"""Characters of an account number by country (the SWIFT registry)."""


def spans(text: str, patterns: Sequence[str]) -> Iterator[tuple[Pattern, int, int]]:
    """What is found, as pattern, start and end; no two overlap, and of two that would the earlier pattern is taken."""
    taken: list[tuple[int, int]] = []
    for name in PATTERNS:
        if name not in patterns:
            continue
        for start, end in _FINDERS[name](text):
            if all(end <= a or start >= b for a, b in taken):
                taken.append((start, end))
                yield name, start, end


def masked(text: str, patterns: Sequence[str]) -> tuple[str, set[str]]:
    """The text with ``[EMAIL]`` and the like in place of what is found, and the names of what was."""
    found = sorted(spans(text, patterns), key=lambda span: span[1])
    parts, last = [], 0
    for name, start, end in found:
        parts += [text[last:start], f"[{name.upper()}]"]
        last = end
    return "".join([*parts, text[last:]]), {name for name, _, _ in found}


def over_text(value: Text, change: Callable[[str], str]) -> Text:
    """A prompt or completion with every piece of its text changed: contents, and what tools are called with."""
    if isinstance(value, str):
        return change(value)
    return [_message(message, change) for message in value]


def _message(message: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    made = {**message, "content": change(message.get("content") or "")}
    if message.get("tool_calls"):
        made["tool_calls"] = _deep(message["tool_calls"], change)
    return made


def _deep(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: item if key in ("id", "type", "name") else _deep(item, change) for key, item in value.items()}
    return [_deep(item, change) for item in value] if isinstance(value, list | tuple) else value


# -- what each pattern is held to ----------------------------------------------------------------------


def luhn(digits: str) -> bool:
    """Whether the check digit of a card number is right (ISO/IEC 7812-1)."""
    doubled = [int(d) * 2 for d in digits[-2::-2]]
    return (sum(map(int, digits[-1::-2])) + sum(d - 9 if d > 9 else d for d in doubled)) % 10 == 0


def _is_card(digits: str) -> bool:
    """An issuer's prefix and length, and the check digit."""
    two, three, four, n = int(digits[:2]), int(digits[:3]), int(digits[:4]), len(digits)
    issued = (
        (digits[0] == "4" and n in (13, 16, 19))  # Visa
        or (n == 16 and (51 <= two <= 55 or 2221 <= four <= 2720))  # Mastercard
        or (n == 15 and two in (34, 37))  # American Express
        or (16 <= n <= 19 and (four == 6011 or 644 <= three <= 649 or two in (62, 65)))  # Discover, UnionPay
        or (n == 14 and (300 <= three <= 305 or two in (36, 38)))  # Diners Club
        or (16 <= n <= 19 and 3528 <= four <= 3589)  # JCB
    )
    return issued and luhn(digits)


def _cards(text: str) -> Iterator[tuple[int, int]]:
    for match in _CARD.finditer(text):
        if _is_card(re.sub(r"\D", "", match[0])):
            yield match.span()


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    """Account numbers of their country's length whose remainder by 97 is 1 (ISO 13616)."""
    for match in _IBAN.finditer(text):
        length = IBAN_LENGTHS.get(match[0][:2], 0)
        places = [i for i, c in enumerate(match[0]) if c != " "]
        if not length or len(places) < length:
            continue
        end = match.start() + places[length - 1] + 1
        code = text[match.start() : end].replace(" ", "")
        if not text[end : end + 1].isalnum() and int("".join(str(int(c, 36)) for c in code[4:] + code[:4])) % 97 == 1:
            yield match.start(), end


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    """Public addresses. Four numbers of a digit each are a section or a version (and ``8.8.8.8`` is nobody's)."""
    for match in _IP4.finditer(text):
        short = all(len(part) == 1 for part in match[0].split("."))
        if (
            not short
            and _public(match[0])
            and not _VERSION.search(text[max(0, match.start() - BEFORE) : match.start()])
        ):
            yield match.span()
    for match in _IP6.finditer(text):
        if _public(match[0]):
            yield match.span()


def _public(words: str) -> bool:
    try:
        return ipaddress.ip_address(words).is_global
    except ValueError:  # 300.1.1.1, or 12:34:56
        return False


def _emails(text: str) -> Iterator[tuple[int, int]]:
    if "@" not in text:
        return
    for match in _EMAIL.finditer(text):
        domain = match[1].lower()
        reserved = domain.endswith((*RESERVED, *(f".{name}" for name in NOBODYS))) or domain in NOBODYS
        if not reserved and not match[0].startswith("git@"):
            yield match.span()


def _phones(text: str) -> Iterator[tuple[int, int]]:
    """Seven to fifteen digits (ITU E.164); a plus behind a number is a sum."""
    for match in _PHONE.finditer(text):
        digits = sum(c.isdigit() for c in match[0])
        international = match[0].startswith("+")
        summed = international and _SUM.search(text[max(0, match.start() - BEFORE) : match.start()])
        if (8 if international else 10) <= digits <= 15 and not summed:
            yield match.span()


_FINDERS: Mapping[Pattern, Callable[[str], Iterator[tuple[int, int]]]] = {
    "card": _cards,
    "iban": _ibans,
    "ssn": lambda text: (match.span() for match in _SSN.finditer(text)),
    "ip": _addresses,
    "email": _emails,
    "phone": _phones,
}
