"""Commands that run one sweep after the other."""
