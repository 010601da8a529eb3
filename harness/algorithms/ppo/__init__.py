"""Proximal policy optimization: our own, on the loop of TRL's trainer."""

from harness.algorithms.ppo.algorithm import PPO

__all__ = ["PPO"]
