"""The harness: decide how to align a language model, on evidence."""

__version__ = "0.1.0"
