"""Predicted peak memory: the trial's own step, rehearsed on tensors without data, every live storage counted."""
