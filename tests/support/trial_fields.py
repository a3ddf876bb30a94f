"""A value other than the default for every field of a trial."""

from __future__ import annotations

OTHER = {
    "prior": "nsf",
    "latent": 3,
    "seed": 1,
    "dataset": "digits[valid=100]",
    "net": "mlp[hidden=8]",
    "prior_lr": 1e-4,
    "schedule": "cosine",
    "warmup": 5,
    "patience": 5,
    "epochs": 65,
    "batch": 255,
    "lr": 0.0011,
    "precision": "bf16",
    "select": "best",
    "clip": 1.0,
    "training": "post-hoc",
}
