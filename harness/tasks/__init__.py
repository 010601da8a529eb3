"""What is learned: prompts, preferences and, where it is known, the true reward."""
