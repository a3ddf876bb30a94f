"""Studies of the harness itself, each a command that writes a table and a figure.

`coverage` simulates whether intervals cover the truth, `estimators` holds estimators of the NLL
side by side, `precision` measures how a lower precision changes it, `step_time` what bounds a
training step.
"""
