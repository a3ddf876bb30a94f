"""What bounds a training step: measured steps against the bare products of its layers.

`python -m bench.studies.step_time` writes a table and a figure.
"""
