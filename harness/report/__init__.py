"""Trials as leaderboard, plots and report: pure functions of tables; only ``gather`` reads stores and writes files."""
