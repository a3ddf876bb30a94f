"""Statistics of trials: intervals, comparisons, failures, convergence.

Takes a frame with one row per trial, and per-image log-likelihoods; returns frames. `Analysis`
computes all of them for a grid.
"""
