"""The loop of zuko's VAE tutorial: the baseline of the step timings only.

    x <- round(image),  z ~ q(z|x),  loss = -mean[ log p(x|z) + log p(z) - log q(z|x) ]

Images are loaded one by one through torchvision's `to_tensor` and a `DataLoader`; the step is
eager and Adam is torch's default. Model and recipe are the tutorial's, and no code is shared with
`flowvae`, so that the timings, and the test that both compute the same loss, compare two programs.
Unlike in the tutorial, the prior can be chosen and there is no progress bar.

References:
    Variational autoencoders, a tutorial of zuko (Rozet et al., 2022), docs/tutorials/vae.ipynb in
    https://github.com/probabilists/zuko
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import zuko
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal
from torch.utils.data import DataLoader, Dataset
from zuko.lazy import LazyDistribution, UnconditionalDistribution

__all__ = [
    "BATCH",
    "LATENT",
    "PRIORS",
    "BernoulliModel",
    "GaussianModel",
    "NegativeELBO",
    "loader",
    "model",
    "steps",
]


BATCH, LATENT, PIXELS = 256, 16, 28 * 28


def _gauss(features: int) -> LazyDistribution:
    moments = torch.zeros(features), torch.ones(features)
    return UnconditionalDistribution(zuko.distributions.DiagNormal, *moments, buffer=True)


PRIORS: dict[str, Callable[[int], LazyDistribution]] = {
    "gauss": _gauss,
    "maf": lambda features: zuko.flows.MAF(features, transforms=3, hidden_features=(256, 256)),
    "nsf": lambda features: zuko.flows.NSF(features, transforms=3, hidden_features=(256, 256)),
}
"""The MAF is the tutorial's, the others are written in its manner."""


def _hyper(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(),
        nn.Linear(1024, outputs),
    )  # fmt: skip


class GaussianModel(LazyDistribution):
    """The encoder q(z|x), a diagonal Gaussian over (*, D) given (*, P)."""

    def __init__(self, features: int, context: int) -> None:
        super().__init__()
        self.hyper = _hyper(context, 2 * features)

    def forward(self, c: Tensor) -> Distribution:
        """Returns q(z|x)."""
        mu, log_sigma = self.hyper(c).chunk(2, dim=-1)
        return Independent(Normal(mu, log_sigma.exp()), 1)


class BernoulliModel(LazyDistribution):
    """The decoder p(x|z), independent Bernoullis over (*, P) given (*, D)."""

    def __init__(self, features: int, context: int) -> None:
        super().__init__()
        self.hyper = _hyper(context, features)

    def forward(self, c: Tensor) -> Distribution:
        """Returns p(x|z)."""
        rho = torch.sigmoid(self.hyper(c))
        return Independent(Bernoulli(rho), 1)


class NegativeELBO(nn.Module):
    """The loss: minus the mean over a batch of one-sample bounds, nats per image."""

    def __init__(
        self, encoder: LazyDistribution, decoder: LazyDistribution, prior: LazyDistribution
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.prior = encoder, decoder, prior

    def forward(self, x: Tensor) -> Tensor:
        """Returns the loss, (), for x (B, P)."""
        q = self.encoder(x)
        z = q.rsample()
        elbo = self.decoder(z).log_prob(x) + self.prior().log_prob(z) - q.log_prob(z)
        return -elbo.mean()


def model(prior: str, latent: int = LATENT) -> NegativeELBO:
    """Builds the tutorial's model with one of `PRIORS`, from torch's global generator."""
    return NegativeELBO(
        GaussianModel(latent, PIXELS), BernoulliModel(PIXELS, latent), PRIORS[prior](latent)
    )


def loader(images: Dataset[Any]) -> DataLoader[Any]:
    """Returns the tutorial's loader over images that torchvision's `to_tensor` transforms."""
    return DataLoader(images, batch_size=BATCH, shuffle=True)


def steps(
    loss: nn.Module, batches: Iterable[Any], device: str | torch.device = "cpu"
) -> Iterator[Tensor]:
    """Trains epoch after epoch, and yields the loss of each step after it.

    Arguments:
        loss: The model, on the device.
        batches: The loader: pairs of images in [0, 1], (B, 1, H, W), and labels.
        device: The device.
    """
    adam = torch.optim.Adam(loss.parameters(), lr=1e-3)
    while True:
        for x, _ in batches:
            value = loss(x.round().flatten(-3).to(device))
            value.backward()
            adam.step()
            adam.zero_grad()
            yield value.detach()
