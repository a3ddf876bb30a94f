"""The MLflow store: creates, finds, writes, resumes and closes runs.

Takes trials, metrics, arrays and files; returns runs. Nothing else writes to MLflow.
"""
