"""What a trial costs while it runs: memory, energy and seconds, each by phase.

The runner watches a worker from outside (``sampler``, through the lens of ``nvml`` or of ``host``); the
worker itself keeps the ``clock``, which knows the exact moment of every change of phase and the true peak
between two.
"""
