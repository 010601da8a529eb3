"""The audit of token ids: what a model would really see of a trial's rows, looked at before anything trains."""

from harness.tasks.ids.found import EMPTY, EQUAL, FILLS, NOTHING, Found, Limits, spoken
from harness.tasks.ids.looking import look

__all__ = ["EMPTY", "EQUAL", "FILLS", "NOTHING", "Found", "Limits", "look", "spoken"]
