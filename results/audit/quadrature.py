"""Holds an audit of models with D = 2 against quadrature: `python quadrature.py RUN_ID...`.

log p(x) of each audited test image is the sum of p(x|z) p(z) over the midpoints of a grid that is
refined where that image has its posterior: a coarse grid over all that prior and posteriors reach
finds the cells that matter, with their neighbours and those around the encoder's mean, and each is
divided by 10 x 10 and by 20 x 20. What the finer division changes says how exact the sum is; a
mode too narrow for the coarse grid and far from the encoder's would be missed.
"""

from __future__ import annotations

import math
import sys
import time

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from bench.tracking import Store, load_run, tracking_uri
from flowvae.data import load_data
from flowvae.vae import VAE

CHUNK = 20_000
CELLS = 500
"""Cells of the coarse grid, along each axis."""
KEPT = 1e-5
"""The share of an image's mass on the coarse grid that may be left out before neighbours join."""


class Plane:
    """A square [-reach, reach]^2 in cells, and a model over it."""

    def __init__(self, vae: VAE, reach: float) -> None:
        self.vae, self.reach, self.width = vae, reach, 2 * reach / CELLS
        axis = -reach + self.width * (torch.arange(CELLS) + 0.5)
        self.middles = torch.cartesian_prod(axis, axis)  # (CELLS^2, 2)

    def joint(self, z: Tensor, on: Tensor) -> Tensor:
        """Returns log p(x, z), (N, n), nats, for points z (n, 2) and images (N, P)."""
        parts = []
        for some in z.split(CHUNK):
            logits = self.vae.decode(some)
            log_x = on @ logits.T - F.softplus(logits).sum(dim=-1)
            parts.append((log_x + self.vae.prior().log_prob(some)).double())
        return torch.cat(parts, dim=1)

    def cells(self, log_p: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Returns which cells matter to one image, given log p(x, z) at their middles, (n,)."""
        order = log_p.argsort(descending=True)
        share = (log_p[order] - log_p.logsumexp(dim=0)).exp().cumsum(dim=0)
        chosen = torch.zeros(CELLS * CELLS, dtype=torch.bool)
        chosen[order[: int((share < 1 - KEPT).sum()) + 1]] = True
        window = self.width + 6 * std
        chosen |= ((self.middles - mean).abs() < window).all(dim=1)
        square = chosen.view(1, 1, CELLS, CELLS).float()
        return F.max_pool2d(square, 3, stride=1, padding=1).view(-1).nonzero()[:, 0]

    def refined(self, cells: Tensor, on: Tensor, division: int) -> float:
        """Returns the log of the mass of one image (1, P) in some cells, each divided, nats."""
        offset = ((torch.arange(division) + 0.5) / division - 0.5) * self.width
        inner = torch.cartesian_prod(offset, offset)
        z = (self.middles[cells][:, None] + inner).flatten(0, 1)
        log_mass = self.joint(z, on).logsumexp(dim=1)
        return log_mass.item() + 2 * math.log(self.width / division)


@torch.inference_mode()
def evidence(vae: VAE, x: Tensor, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns log p(x), (N,), nats, by the coarser and by the finer division."""
    plane, on = Plane(vae, reach), x.float()
    mean, log_std = vae.encode(x)
    coarse = plane.joint(plane.middles, on)  # (N, CELLS^2)
    found = []
    for n in range(len(x)):
        cells = plane.cells(coarse[n], mean[n], log_std[n].exp())
        found.append([plane.refined(cells, on[n : n + 1], division) for division in (10, 20)])
    return tuple(np.array(found).T)


def main(runs: list[str]) -> None:
    """Prints one row a run."""
    store = Store(tracking_uri(), "")
    for run_id in runs:
        vae, trial = load_run(run_id)
        run = store.client.get_run(run_id)
        (key,) = (tag.partition(".")[2] for tag in run.data.tags if tag.startswith("audit."))
        folder = store.artifact(run, f"audits/{key}")
        assert folder is not None
        index = torch.from_numpy(np.load(folder / "index.npy"))
        annealed = np.load(folder / "real_lower.npy")
        ladder = {
            int(path.stem.partition("_k")[2]): np.load(path)
            for path in folder.glob("real_iw_k*.npy")
        }
        test = load_data(trial.dataset).test
        with torch.inference_mode():
            mean, log_std = vae.encode(test)
        reach = 1.05 * float((mean.abs() + 8 * log_std.exp()).max().clamp(min=6.0))
        start = time.perf_counter()
        coarse, exact = evidence(vae, test[index], reach)
        seconds = time.perf_counter() - start
        errors = {f"IW {k}": float((ladder[k] - exact).mean()) for k in sorted(ladder)}
        errors["annealed"] = float((annealed - exact).mean())
        error = np.abs(annealed - exact)
        print(
            f"{trial.name}: quadrature NLL {-exact.mean():.3f} on {len(index)} test images, "
            f"reach {reach:.1f}, halving the step changes {np.abs(exact - coarse).max():.4f} at "
            f"most; annealed within 0.02 nats of it on {int((error < 0.02).sum())} images, off by "
            f"{np.median(error):.4f} in the median and {error.max():.1f} at most; mean minus it: "
            + ", ".join(f"{name} {mean:+.3f}" for name, mean in errors.items())
            + f"; {seconds:.0f} s",
            flush=True,
        )
        for n, image in enumerate(index.tolist()):
            row = [
                trial.name,
                image,
                exact[n],
                annealed[n],
                *(ladder[k][n] for k in sorted(ladder)),
            ]
            print(",".join(str(value) for value in row), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
