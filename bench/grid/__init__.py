"""Grids of trials, made from flags and experiment files, and the jobs that workers run.

Takes the texts of flags and files; returns a `Grid` of `Trial`s.
"""
