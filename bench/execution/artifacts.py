"""Images and maps of a fitted model: samples, reconstructions, its latent map and manifold.

All are arrays; a sheet is an array of images drawn side by side.
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
MIN_SHEET_PIXELS = 448
"""The least height of a sheet."""


def samples(vae: VAE, count: int = 64) -> Array:
    """Returns images drawn from the model, as probabilities of pixels, (count, H, W)."""
    return vae.sample(count).float().numpy()


def real_images(data: Dataset, count: int = 64) -> NDArray[np.uint8]:
    """Returns the first test images as 0 and 1, (count, H, W), to compare samples with."""
    return data.test[:count].view(-1, *data.shape).numpy().astype(np.uint8)


@torch.no_grad()
def reconstructions(vae: VAE, data: Dataset, count: int = 32) -> Array:
    """Returns the first test images, each followed by its reconstruction, (2 count, H, W)."""
    x = data.test[:count].to(next(vae.parameters()).device)
    mean = vae.encode(x).mean
    images = vae.likelihood.mean(vae.decode(mean))
    pairs = torch.stack([x.to(mean.dtype), images], dim=1)
    return pairs.view(-1, *vae.shape).float().cpu().numpy()


def sheet(images: Array, columns: int = 8) -> Image.Image:
    """Returns a picture of images in [0, 1], (n, H, W), side by side, black on white."""
    count, height, width = images.shape
    rows = -(-count // columns)
    page = np.ones((rows * columns, height + 1, width + 1), np.float32)
    page[:count, :-1, :-1] = 1 - np.nan_to_num(images)
    page = page.reshape(rows, columns, height + 1, width + 1).swapaxes(1, 2)
    pixels = (255 * page.reshape(rows * (height + 1), -1)[:-1, :-1]).astype(np.uint8)
    factor = max(1, -(-MIN_SHEET_PIXELS // pixels.shape[0]))
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
        points: The number of grid points G per axis.
        side: The number of quantiles M of the prior per axis.

    Returns:
        `codes` (N, 2), one posterior sample per test image, some not finite where the posterior's
        scale overflows; `labels` (N,), their classes; `axis_x` (G,), `axis_y` (G,) and
        `log_density` (G, G), log p(z), nats, row by row in y; `places` (M, M, 2), see `quantiles`,
        and `manifold` (M, M, H, W), the probabilities of pixels there times 255, as uint8.
    """
    device = next(vae.parameters()).device
    posterior = vae.encode(data.test.to(device))
    mean = posterior.mean
    noise = torch.randn(mean.shape, generator=generator(seed, "latent map"))
    codes = posterior.sample(noise.to(mean)).cpu()
    with global_stream(seed, "latent map"):
        draws = vae.prior_on_cpu().sample((1000,)).to(codes)
    reach = _reach(codes, draws)
    axis_x, axis_y = (torch.linspace(-r, r, points) for r in reach.tolist())
    grid = torch.cartesian_prod(axis_y, axis_x).flip(-1).to(mean)  # (G G, 2), x fastest
    density = vae.prior().log_prob(grid).view(points, points).cpu()
    places = quantiles(density.numpy(), axis_x.numpy(), axis_y.numpy(), side)
    decoded = vae.likelihood.mean(vae.decode(torch.from_numpy(places).to(mean).flatten(0, 1)))
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
    """Returns half the width of a map by axis, (2,): it shows the codes and, if it can, the prior.

    A prior that extends more than twice as far as the codes is cut: they would be one dot.
    """
    ends = [torch.full((2,), 3.0)] * 2
    for k, (points, share) in enumerate(((codes, 0.999), (draws, 0.995))):
        finite = points[points.isfinite().all(dim=-1)]
        if len(finite):
            ends[k] = torch.maximum(1.1 * finite.abs().quantile(share, dim=0).float(), ends[k])
    return torch.maximum(ends[0], torch.minimum(ends[1], 2 * ends[0]))


def quantiles(log_density: Array, axis_x: Array, axis_y: Array, side: int) -> Array:
    """Returns points that divide a prior into equal masses, by its inverse Rosenblatt transform.

    With u and v of (k + 1/2) / M, P(X < x) = u and P(Y < y | X = x) = v: for a Gaussian prior they
    are the quantiles of its two axes, and no point of any prior lies where it has no mass.

    References:
        Remarks on a Multivariate Transformation (Rosenblatt, 1952)
        https://doi.org/10.1214/aoms/1177729394

    Arguments:
        log_density: log p(z), nats, (G, G), row by row in y; no mass where it is not finite.
        axis_x: The x of its columns, (G,).
        axis_y: The y of its rows, (G,).
        side: The number of quantiles M per axis.

    Returns:
        The x and y of the points, (M, M, 2), row by row in v.

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
    columns = _inverse(mass.sum(axis=0), levels)
    points = np.empty((side, side, 2), np.float32)
    for column, x in enumerate(columns):
        left = int(x)
        share = x - left
        slice_ = (1 - share) * mass[:, left] + share * mass[:, min(left + 1, len(axis_x) - 1)]
        points[:, column, 0] = np.interp(x, np.arange(len(axis_x)), axis_x)
        points[:, column, 1] = np.interp(_inverse(slice_, levels), np.arange(len(axis_y)), axis_y)
    return points


def _inverse(mass: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the places in a row of cells where the cumulated mass reaches each level, (M,)."""
    edges = np.concatenate([[0.0], np.cumsum(mass)])
    filled = np.concatenate([[True], np.diff(edges) > 0])  # an empty cell has no quantile
    places = np.interp(levels * edges[-1], edges[filled], np.flatnonzero(filled) - 0.5)
    return places.clip(0, len(mass) - 1)
