"""Who says which of two replies is better, where no rule does."""
