"""Audits: brackets of the evidence of fitted models, by annealing and quadrature.

Takes runs of a store; records bounds and exact evidence in them, prints tables, draws a figure.
"""
