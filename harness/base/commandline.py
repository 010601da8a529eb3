"""What the sub-commands that read tracked sweeps share: a parser that complains as the rest does, and the store."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from harness.base.errors import UserError

OVERRIDES = {"tracking.uri": "tracking_uri", "tracking.experiment": "experiment", "sweep": "sweep"}


class Parser(argparse.ArgumentParser):
    """Complains as the rest of the harness does, with options of the store and their Hydra spelling."""

    def __init__(self, command: str, description: str):
        """The parser of ``python -m harness COMMAND``."""
        super().__init__(prog=f"python -m harness {command}", description=description)
        self.command = command

    def error(self, message: str) -> NoReturn:
        """As a ``UserError``."""
        raise UserError(message, key=self.command, fix=f"see `{self.prog} --help`")

    def add_store(self, experiment: str | None = "harness", about: str = "default: %(default)s") -> None:
        """Where the tracked numbers are: the store, and the experiment with its default and what it is good for."""
        self.add_argument("--tracking-uri", metavar="URI", default="sqlite:///mlflow.db", help="default: %(default)s")
        self.add_argument("--experiment", metavar="NAME", default=experiment, help=about)
        self.add_argument(
            "overrides", nargs="*", metavar="tracking.uri=URI", help=f"also {', '.join(OVERRIDES)}=..."
        )  # fmt: skip

    def options(self, argv: list[str]) -> Any | None:
        """The options; None where only help was asked for."""
        try:
            found = self.parse_args(argv)
        except SystemExit:  # --help
            return None
        for override in found.overrides:
            key, _, value = override.partition("=")
            if key not in OVERRIDES or not value or not hasattr(found, OVERRIDES[key]):
                known = ", ".join(k for k, name in OVERRIDES.items() if hasattr(found, name))
                raise UserError("not understood", key=self.command, value=override, fix=f"known: {known}=...")
            setattr(found, OVERRIDES[key], value)
        return found


def positive(text: str) -> int:
    """A whole number above 0, as the type of an option."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {number}")
    return number
