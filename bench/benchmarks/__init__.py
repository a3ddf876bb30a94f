"""pytest-benchmark timings of training steps and scores, against baselines and a floor.

`pytest bench --benchmark-enable --benchmark-json FILE` measures; `python -m bench.benchmarks FILE`
draws.
"""
