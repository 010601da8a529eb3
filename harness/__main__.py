"""``python -m harness``."""

from harness.cli.main import start

if __name__ == "__main__":
    start()
