"""The curve of a trial: what it is worth at shares of its budget, and what is decided by that."""
