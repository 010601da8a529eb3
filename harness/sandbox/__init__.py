"""Programs that a model writes, run where they can do nothing, and judged by what they cannot reach."""
