"""Estimators: importance weighting, annealing, quadrature, and the parts of the ELBO.

Takes a model and images; returns per-image numbers in nats.
"""
