"""Numerical building blocks: random streams, precision, splines, Gaussian mixtures.

Tensors in, tensors out; nothing here knows of priors, nets or trials.
"""
