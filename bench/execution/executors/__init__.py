"""Executors of jobs: this process, local processes, or a Dask cluster.

Each takes `Job`s and returns futures of their `Outcome`s.
"""
