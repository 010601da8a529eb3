"""Trials as a leaderboard, plots and a markdown report. Pure functions of tables; only ``markdown`` reads and writes."""
