"""From flags and experiment files to a grid of trials, stacks and jobs.

Takes what a person typed; returns a `Grid` of `Trial`s, and the `Job`s that workers exchange.
"""
