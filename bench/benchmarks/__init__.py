"""Benchmarks of training steps and scoring, beside baselines and a floor.

`pytest bench --benchmark-enable --benchmark-json FILE` measures; `python -m bench.benchmarks FILE`
draws the figures.
"""
