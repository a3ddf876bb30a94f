"""Names of the tags and params of MLflow runs."""

from __future__ import annotations

__all__ = [
    "COMPLETE_TAG",
    "EARLIER_ESTIMATOR",
    "ENDED_AS",
    "ESTIMATOR_TAG",
    "GROUP",
    "NOTE",
    "SUPERSEDED",
    "TRIAL",
]


TRIAL = "trial"
"""The tag that holds a trial's id."""
COMPLETE_TAG = "complete"
"""The tag that makes a run a result; it is written last."""
ENDED_AS = "ended_as"
"""The param that says what a run ended as: `complete`, `diverged` or `superseded`."""
SUPERSEDED = "superseded"
NOTE = "mlflow.note.content"
"""The tag that MLflow shows as the description of a run or of an experiment."""
GROUP = "group"
"""The tag by which MLflow groups the seeds of an arm."""
ESTIMATOR_TAG, EARLIER_ESTIMATOR = "nll_estimator", "encoder"
"""The tag that names the estimator of the NLL, and the estimator of runs without that tag, which
are older than the choice."""
