"""Reads results back, from a store or a table, as one frame.

Takes a store and trials, or the names of sources; returns `Results`.
"""
