"""Rows of people's files: formats, splits, and what is wrong with them."""
