"""Facts and small tools that know nothing of what is trained: errors, records, statistics, how figures are written."""
