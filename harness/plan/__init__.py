"""Predicted peak memory of trials: what fits, and what to change about what does not."""
