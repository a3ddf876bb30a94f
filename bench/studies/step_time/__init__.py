"""Study of training speed: what bounds a step, by latent size, batch and stack.

`python -m bench.studies.step_time` writes a table and a figure.
"""
