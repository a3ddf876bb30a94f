"""What is kept of a model to be looked at: samples, reconstructions, and its latent map.

All are arrays first; a sheet is an array of images drawn as one.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from flowvae.data import Dataset
from flowvae.streams import generator
from flowvae.vae import VAE

__all__ = ["latent_map", "reconstructions", "samples", "sheet"]

Array = NDArray[np.float32]
SIDE = 448
"""The least height of a sheet, pixels."""


def samples(vae: VAE, count: int = 64) -> Array:
    """Returns the pixels' probabilities of images drawn from the model, (count, H, W)."""
    return vae.sample(count).float().numpy()


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
def latent_map(vae: VAE, data: Dataset, *, seed: int, points: int = 160) -> dict[str, NDArray]:
    """Returns the aggregate posterior and the prior of a model with two latent features.

    Arguments:
        vae: The model, D = 2.
        data: Its data set.
        seed: The seed of the posterior samples.
        points: The number of grid points G an axis.

    Returns:
        `codes` (N, 2), one posterior sample for each test image, not all of them finite where the
        posterior's scale overflows; `labels` (N,), their classes; `axis_x` (G,), `axis_y` (G,) and
        `log_density` (G, G), log p(z), nats, row by row in y.
    """
    device = next(vae.parameters()).device
    mean, log_std = vae.encode(data.test.to(device))
    noise = torch.randn(mean.shape, generator=generator(seed, "latent map"))
    codes = (mean + log_std.exp() * noise.to(mean)).cpu()
    known = codes[codes.isfinite().all(dim=-1)]
    reach = torch.full((2,), 3.0)
    if len(known):
        reach = torch.maximum(known.abs().quantile(0.999, dim=0) * 1.1, reach)
    axis_x, axis_y = (torch.linspace(-r, r, points) for r in reach.tolist())
    grid = torch.cartesian_prod(axis_y, axis_x).flip(-1).to(mean)  # (G G, 2), x fastest
    density = vae.prior().log_prob(grid).view(points, points).cpu()
    return {
        "codes": codes.numpy(),
        "labels": data.labels.numpy(),
        "axis_x": axis_x.numpy(),
        "axis_y": axis_y.numpy(),
        "log_density": density.numpy(),
    }
