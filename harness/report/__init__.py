"""Trials as leaderboard, plots and markdown report: pure functions of tables; only ``markdown`` does I/O."""
