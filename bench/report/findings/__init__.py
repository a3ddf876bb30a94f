"""Sentences of the report: comparison, best prior, failures, convergence, reliability.

Take frames of `bench.statistics`; return plain sentences.
"""
