"""Sentences of the report: comparison, best prior, failures, convergence, reliability.

Each module takes frames of `bench.statistics` or an `Analysis`; returns sentences.
"""
