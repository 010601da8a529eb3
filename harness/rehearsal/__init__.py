"""A trial's heaviest step, taken on tensors without data or on real ones, with every live byte counted."""
