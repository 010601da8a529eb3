"""Whether a completion is right, decided under a limit of time."""
