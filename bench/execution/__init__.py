"""Runs the jobs of a grid: plans, schedules, trains, scores and records.

Takes a `Grid` and a `Store`; yields `Outcome`s, and leaves every number in the store.
"""
