"""Bodies of the encoder and the decoder.

The encoder maps an image x, (N, P), to the mean and log standard deviation of q(z|x), (N, 2 D);
the decoder maps a latent z, (N, D), to the logits of p(x|z), (N, P). No layer mixes examples.

Papers speak of log-variances, log std^2 = 2 log std, and some clamp them: the options `logvar_min`
and `logvar_max` of every net bound the log standard deviation to [logvar_min / 2, logvar_max / 2].
"""

from __future__ import annotations

# The imports fill the registry, in the order in which the nets are listed.
# ruff: isort: off
from flowvae.nets.base import NETS, Bodies, check_bodies
from flowvae.nets.perceptrons import gated, mlp
from flowvae.nets.residual import resnet

__all__ = ["NETS", "Bodies", "check_bodies", "gated", "mlp", "resnet"]
