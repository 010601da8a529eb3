"""Trials of several processes, and sweeps beyond one host. Servers listen on loopback addresses alone."""
