"""The shared ELBO trainer, over a stack of one or more seeds.

Takes trials and a data set; returns `Fitted` models with their curves and timings.
"""
