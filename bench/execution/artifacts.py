"""What is kept of a model to be looked at: samples, reconstructions, its latent map and manifold.

All are arrays first; a sheet is an array of images drawn as one.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from flowvae.data import Dataset
from flowvae.models.vae import VAE
from flowvae.numerics.streams import generator, global_stream

__all__ = ["latent_map", "quantiles", "real_images", "reconstructions", "samples", "sheet"]


Array = NDArray[np.float32]
SIDE = 448
"""The least height of a sheet, pixels."""


def samples(vae: VAE, count: int = 64) -> Array:
    """Returns the pixels' probabilities of images drawn from the model, (count, H, W)."""
    return vae.sample(count).float().numpy()


def real_images(data: Dataset, count: int = 64) -> NDArray[np.uint8]:
    """Returns the first test images as 0 and 1, (count, H, W): what samples are held against."""
    return data.test[:count].view(-1, *data.shape).numpy().astype(np.uint8)


@torch.no_grad()
def reconstructions(vae: VAE, data: Dataset, count: int = 32) -> Array:
    """Returns the first test images, each before its reconstruction, (2 count, H, W)."""
    x = data.test[:count].to(next(vae.parameters()).device)
    mean, _ = vae.encode(x)
    pairs = torch.stack([x.to(mean.dtype), torch.sigmoid(vae.decode(mean))], dim=1)
    return pairs.view(-1, *vae.shape).float().cpu().numpy()


def sheet(images: Array, columns: int = 8) -> Image.Image:
    """Draws images in [0, 1], (n, H, W), side by side, black on white."""
    count, height, width = images.shape
    rows = -(-count // columns)
    page = np.ones((rows * columns, height + 1, width + 1), np.float32)
    page[:count, :-1, :-1] = 1 - np.nan_to_num(images)
    page = page.reshape(rows, columns, height + 1, width + 1).swapaxes(1, 2)
    pixels = (255 * page.reshape(rows * (height + 1), -1)[:-1, :-1]).astype(np.uint8)
    factor = max(1, -(-SIDE // pixels.shape[0]))
    return Image.fromarray(pixels.repeat(factor, axis=0).repeat(factor, axis=1))


@torch.no_grad()
def latent_map(
    vae: VAE, data: Dataset, *, seed: int, points: int = 160, side: int = 14
) -> dict[str, NDArray]:
    """Returns the aggregate posterior and the prior of a model with two latent features.

    Arguments:
        vae: The model, D = 2.
        data: Its data set.
        seed: The seed of the posterior samples.
        points: The number of grid points G an axis.
        side: The number of quantiles M of the prior an axis.

    Returns:
        `codes` (N, 2), one posterior sample for each test image, not all of them finite where the
        posterior's scale overflows; `labels` (N,), their classes; `axis_x` (G,), `axis_y` (G,) and
        `log_density` (G, G), log p(z), nats, row by row in y; `places` (M, M, 2), see `quantiles`,
        and `manifold` (M, M, H, W), the pixels' probabilities there, as uint8 of 255.
    """
    device = next(vae.parameters()).device
    mean, log_std = vae.encode(data.test.to(device))
    noise = torch.randn(mean.shape, generator=generator(seed, "latent map"))
    codes = (mean + log_std.exp() * noise.to(mean)).cpu()
    with global_stream(seed, "latent map"):
        draws = vae.prior_on_cpu().sample((1000,)).to(codes)
    reach = _reach(codes, draws)
    axis_x, axis_y = (torch.linspace(-r, r, points) for r in reach.tolist())
    grid = torch.cartesian_prod(axis_y, axis_x).flip(-1).to(mean)  # (G G, 2), x fastest
    density = vae.prior().log_prob(grid).view(points, points).cpu()
    places = quantiles(density.numpy(), axis_x.numpy(), axis_y.numpy(), side)
    decoded = torch.sigmoid(vae.decode(torch.from_numpy(places).to(mean).flatten(0, 1)))
    manifold = 255 * decoded.float().cpu().view(side, side, *vae.shape).nan_to_num()
    return {
        "codes": codes.numpy(),
        "labels": data.labels.numpy(),
        "axis_x": axis_x.numpy(),
        "axis_y": axis_y.numpy(),
        "log_density": density.numpy(),
        "places": places,
        "manifold": manifold.round().numpy().astype(np.uint8),
    }


def _reach(codes: Tensor, draws: Tensor) -> Tensor:
    """Returns how far from zero a map goes, (2,): it holds the codes, and the prior where it can.

    A prior that reaches more than twice as far as the codes is cut: they would be one dot.
    """
    far = [torch.full((2,), 3.0)] * 2
    for k, (each, share) in enumerate(((codes, 0.999), (draws, 0.995))):
        known = each[each.isfinite().all(dim=-1)]
        if len(known):
            far[k] = torch.maximum(1.1 * known.abs().quantile(share, dim=0).float(), far[k])
    return torch.maximum(far[0], torch.minimum(far[1], 2 * far[0]))


def quantiles(log_density: Array, axis_x: Array, axis_y: Array, side: int) -> Array:
    """Returns points that part a prior into equal masses, by its inverse Rosenblatt transform.

    With u and v of (k + 1/2) / M, P(X < x) = u and P(Y < y | X = x) = v: for a Gaussian prior they
    are the quantiles of its two axes, and for no prior does one lie where it has no mass.

    References:
        Remarks on a Multivariate Transformation (Rosenblatt, 1952)
        https://doi.org/10.1214/aoms/1177729394

    Arguments:
        log_density: log p(z), nats, (G, G), row by row in y; what is not finite has no mass.
        axis_x: Where it is known, (G,).
        axis_y: The same, (G,).
        side: The number of quantiles M an axis.

    Returns:
        Their x and y, (M, M, 2), row by row in v.

    Example:
        >>> axis = np.linspace(-6, 6, 241)
        >>> normal = -(axis[None] ** 2 + axis[:, None] ** 2) / 2
        >>> quantiles(normal, axis, axis, 2).astype(float).round(2).tolist()
        [[[-0.67, -0.67], [0.67, -0.67]], [[-0.67, 0.67], [0.67, 0.67]]]
    """
    density = np.nan_to_num(log_density.astype(np.float64), nan=-np.inf, posinf=-np.inf)
    top = density.max()
    mass = np.exp(density - top) if np.isfinite(top) else np.ones(density.shape)
    levels = (np.arange(side) + 0.5) / side
    at = _inverse(mass.sum(axis=0), levels)
    found = np.empty((side, side, 2), np.float32)
    for column, x in enumerate(at):
        left = int(x)
        share = x - left
        slice_ = (1 - share) * mass[:, left] + share * mass[:, min(left + 1, len(axis_x) - 1)]
        found[:, column, 0] = np.interp(x, np.arange(len(axis_x)), axis_x)
        found[:, column, 1] = np.interp(_inverse(slice_, levels), np.arange(len(axis_y)), axis_y)
    return found


def _inverse(mass: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns where on a line of cells, of these masses, each level of the total is reached."""
    edges = np.concatenate([[0.0], np.cumsum(mass)])
    known = np.concatenate([[True], np.diff(edges) > 0])  # an empty cell has no quantile
    at = np.interp(levels * edges[-1], edges[known], np.flatnonzero(known) - 0.5)
    return at.clip(0, len(mass) - 1)
