"""Studies of the harness itself: interval coverage, precision, step time.

Each is a command that writes a table and a figure.
"""
