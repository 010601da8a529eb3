"""Did it get worse? A candidate sweep against a baseline, metric by metric, decided on intervals."""
