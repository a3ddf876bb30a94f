"""Arrays and frames in, numbers out: intervals, comparisons, failures, convergence.

Takes a frame with a row per trial and per-image log-likelihoods; returns frames.
"""
