"""The audit: brackets the evidence of fitted models by annealing and quadrature.

Takes runs of a store; records bounds and exact evidence, prints a table, draws a figure.
"""
