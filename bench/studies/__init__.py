"""Studies of the harness itself, each a command that writes a table and a figure.

`coverage` simulates whether intervals cover the truth, `precision` measures how a lower precision
changes the NLL, `step_time` measures what bounds a training step.
"""
