"""Which training rows are kept, and why the others are not: a rule per file, applied by ``applying``."""
