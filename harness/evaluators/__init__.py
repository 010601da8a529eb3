"""Evaluators: one YAML and one small file each; all judge the base and the trained model the same way."""
