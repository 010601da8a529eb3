"""Rewards for online algorithms: a frozen class each, plus a YAML in ``conf/reward/``."""
