"""Hydra's launchers for Slurm and Ray, with what a sweep of hours needs of them.

They submit a trial as a job and wait for all of them: a job that is lost is no reason to leave the others alone, and a
driver that is told to stop takes back what it has submitted.
"""
