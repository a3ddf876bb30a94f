"""Process and machine: devices, memory, signals, the folder of results.

Takes nothing of the project but its errors; knows nothing of trials.
"""
