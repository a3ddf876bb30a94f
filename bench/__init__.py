"""The harness around flowvae: grids, MLflow, statistics, figures, commands."""

import os

# Read when MLflow is imported, whichever module is the first to.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would look a host up
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # its 7 take two minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # its 120 s are longer than a grace
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # a line a run, amid ours
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
