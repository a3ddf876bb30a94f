"""Models of one architecture that differ in their weights, as one function of stacked weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from flowvae.models.vae import VAE, Terms
from flowvae.nets.linear import Linear
from flowvae.priors import PRIORS
from flowvae.specs.registry import Spec
from flowvae.trial import Trial

__all__ = ["Stack", "stackable"]


def stackable(trial: Trial) -> bool:
    """Returns whether the trial's prior can be trained in a stack of several seeds."""
    return PRIORS[Spec.parse(trial.prior).name].stackable


class Stack:
    """Models of one architecture as one function over parameters with a leading axis (S, ...).

    A single model is called as it is: on a CPU `vmap` costs 1.4 to 2 times the time.

    Arguments:
        models: The models, on one device.
    """

    def __init__(self, models: Sequence[VAE]) -> None:
        self.models = models
        self.size = len(models)
        if self.size == 1:
            self.state: dict[str, Tensor] = dict(models[0].named_parameters())
            return
        stacked, buffers = stack_module_state(list(models))
        self.state = dict(stacked)
        # Buffers that all members share stay unstacked: some transforms take no batched constant.
        shared = {name: bool((b == b[0]).all()) for name, b in buffers.items()}
        buffers = {name: b[0] if shared[name] else b for name, b in buffers.items()}
        skeleton = copy.deepcopy(models[0]).to("meta")
        for module in skeleton.modules():
            if isinstance(module, Linear):
                module.stacked = True

        def terms(state: dict[str, Tensor], buffers: dict[str, Tensor], *data: Tensor) -> Terms:
            return functional_call(skeleton, (state, buffers), data)

        axes = {name: None if shared[name] else 0 for name in buffers}
        self._buffers, self._axes, self._terms = buffers, axes, terms

    @property
    def draws(self) -> int:
        """The number of random points of its own that an image brings the prior."""
        return int(getattr(self.models[0].prior, "draws", 0))

    def terms(self, *batch: Tensor) -> Terms:
        """Returns the bound's terms, each (S, B).

        Arguments:
            batch: The arguments of `VAE.elbo`, each with a leading axis (S,): x (S, B, P), noise
                (S, B, D), and where the prior has draws of its own, these, (S, B * draws, D).
        """
        if self.size == 1:
            return Terms(*(t[None] for t in self.models[0].elbo(*(data[0] for data in batch))))
        mapped = vmap(self._terms, in_dims=(0, self._axes, *(0 for _ in batch)))
        return Terms(*mapped(self.state, self._buffers, *batch))

    def members(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Yields each member's number and its parameters, as views."""
        for s in range(self.size):
            yield (
                s,
                {
                    k: p.detach() if self.size == 1 else p.detach()[s]
                    for k, p in self.state.items()
                },
            )

    def clip(self, norm: float) -> None:
        """Scales each member's gradient to a global norm of at most `norm`."""
        gradients = [p.grad for p in self.state.values() if p.grad is not None]
        if self.size == 1:
            gradients = [g[None] for g in gradients]
        squares = torch.stack([g.reshape(len(g), -1).square().sum(dim=1) for g in gradients])
        scale = (norm / (squares.sum(dim=0).sqrt() + 1e-6)).clamp(max=1.0)
        for g in gradients:
            g *= scale.view(-1, *(1,) * (g.ndim - 1))
