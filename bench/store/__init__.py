"""The MLflow store: finds, claims, writes, resumes and closes runs.

Takes trials, metrics, arrays and files; returns states of trials, and runs. Nothing else writes to
MLflow.
"""
