"""Results: reads trials back from a store or a `trials.csv`, and joins several sources.

Takes the names of experiments and tables; returns `Results`: a frame with one row a trial, and the
scores, curves and pictures behind it.
"""
