"""What a person calls: one module for each command."""

from harness.cli.main import start

__all__ = ["start"]
