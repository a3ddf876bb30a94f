"""Variational autoencoders with many priors, trained and evaluated in the same way.

>>> import flowvae
>>> trial = flowvae.Trial(prior="maf[hidden=32]", latent=2, net="mlp[hidden=32]", epochs=2)
>>> data = flowvae.load_data(trial.dataset)
>>> (fitted,) = flowvae.fit([trial], data)
>>> fitted.vae.sample(4).shape
torch.Size([4, 8, 8])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowvae.checkpoint import Checkpoint
    from flowvae.data import DATASETS, Dataset, load_data
    from flowvae.errors import InputError
    from flowvae.evaluation.annealing import Bounds, anneal
    from flowvae.evaluation.elbo_surgery import Surgery, dissect
    from flowvae.evaluation.importance_weighting import Scores, evaluate
    from flowvae.evaluation.quadrature import Evidence, evidence
    from flowvae.models.saved_model import load, save
    from flowvae.models.vae import VAE, build
    from flowvae.nets import NETS
    from flowvae.priors import PRIORS, Latent
    from flowvae.training.trainer import Fitted, fit, fit_prior
    from flowvae.trial import Audit, Evaluation, Trial

_HOMES = {
    "evaluation.annealing": ["Bounds", "anneal"],
    "checkpoint": ["Checkpoint"],
    "data": ["DATASETS", "Dataset", "load_data"],
    "errors": ["InputError"],
    "evaluation.importance_weighting": ["Scores", "evaluate"],
    "models.saved_model": ["load", "save"],
    "nets": ["NETS"],
    "priors": ["PRIORS", "Latent"],
    "evaluation.quadrature": ["Evidence", "evidence"],
    "evaluation.elbo_surgery": ["Surgery", "dissect"],
    "training.trainer": ["Fitted", "fit", "fit_prior"],
    "trial": ["Audit", "Evaluation", "Trial"],
    "models.vae": ["VAE", "build"],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [  # noqa: PLE0604
    "DATASETS",
    "NETS",
    "PRIORS",
    "VAE",
    "Audit",
    "Bounds",
    "Checkpoint",
    "Dataset",
    "Evaluation",
    "Evidence",
    "Fitted",
    "InputError",
    "Latent",
    "Scores",
    "Surgery",
    "Trial",
    "anneal",
    "build",
    "dissect",
    "evaluate",
    "evidence",
    "fit",
    "fit_prior",
    "load",
    "load_data",
    "save",
]


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Imports a name when it is first used: a command line answers before torch is loaded."""
    if name not in _HOME:
        raise AttributeError(f"module 'flowvae' has no attribute '{name}'")
    return getattr(importlib.import_module(f"flowvae.{_HOME[name]}"), name)
