"""Parts of a report that stand for themselves."""
