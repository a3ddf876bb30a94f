"""The evidence by quadrature: log p(x) of all images at once, where z has one or two dimensions.

    p(x) = int p(x|z) p(z) dz  ~  sum_c |c| p(x|z_c) p(z_c)

over cells c with midpoints z_c and volumes |c|. The points are shared: the decoder sees each once,
and log p(x|z) of all images at many points is one matrix product,

    log p(x|z) = x . l(z) - sum_i softplus(l_i(z)),     l(z) the logits.

*Coarse cells.* Each axis is z = centre + scale * sinh(u), with equal cells in u, so that cells are
narrow where prior and posteriors have their mass and the grid still ends far outside: four times
as far from the centre as the prior's draws (all but 1 in 1,000 at each end) and every posterior's
mean +- 8 standard deviations. Midpoints of a smooth density are exact to far below its width once
the cells are about as narrow as it is.

*Division.* For each image apart, those cells are divided by 2 along each axis which could hold
more than a tiny share of its mass. What a cell could hold is not what its midpoint sees, a density
narrower than the cell may lie beside it, but the largest of three: the midpoint's density, that of
the cell it was divided from, and the tangent at the midpoint, taken to the cell's corner, which a
density that is concave in the log never passes. Beside the encoder's mean it is also the density
at that mean and one standard deviation from it, until a cell is as narrow as that. A coarse cell
whose midpoint is outside the support could hold what its neighbours could: half may be inside.

*The end.* An image's division ends when two numbers are below the tolerance. The first is how far
sums over cells twice as wide are from the sum: of the cells that were divided, and of each of the
2^D shifted grids that their parts make. These lie half a period apart, so that no density hides
from all of them by chance. The second is the mass that is *hidden*: what those cells could hold
whose midpoint sees less than e^-5 of it.

Warning:
    A mode is missed if it is narrower than a coarse cell, far from the encoder's mean of that
    image, and so steep that the nearest midpoints have no slope towards it. Such a mode would make
    log p(x) larger: what is missed leaves a lower bound, as importance weighting does. What lies
    beyond the grid is missed too, and reported: it counts as error, as much as the way in which
    the mass falls off in the outermost cells would leave. Where mass ends abruptly in two
    dimensions, as at the end of a support, the reported error may be several times too small: many
    cells lie along that end, each too small to be divided on.

References:
    The Exponentially Convergent Trapezoidal Rule (Trefethen and Weideman, 2014),
    https://doi.org/10.1137/130932132 : why equal cells are so exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowvae.data import check_pixels
from flowvae.errors import InputError
from flowvae.evaluation.importance_weighting import freeze_prior, sharp
from flowvae.evaluation.quadrature_cells import Axes, beyond_axes, log_sum, shares
from flowvae.models.vae import VAE
from flowvae.numerics.precision import DTYPES, matrix_products
from flowvae.numerics.streams import global_stream

__all__ = ["MAX_FEATURES", "Evidence", "evidence"]


MAX_FEATURES = 2
"""The largest number of latent features D: the cells grow as its power."""
MAX_LEVELS = 20
"""The most divisions of a coarse cell, which is then as narrow as float32 can tell."""
NEGLIGIBLE_SHARE = 1e-3
"""The share of the tolerance that a cell may hold which is not divided."""
HIDDEN_EXCESS = 5.0
"""By how much what a cell could hold exceeds what its midpoint sees where mass is hidden, nats."""
DRAWS, NEAR = 4096, 3.0
"""The prior's draws that show where it is, and how far the neighbourhood of an encoder's mean
goes, standard deviations."""
POINTS = 4096
"""Points that the decoder sees at a time."""
BLOCK = 64
"""Neighbouring cells whose parts make one matrix product, with the images that need any."""
BUDGET = 2**28
"""The memory of logits that are kept, and of densities on the coarse grid, bytes."""
PAIRS = 2**21
"""Pairs of image and cell from which on images are not divided together with more of them."""


class Evidence(NamedTuple):
    """The evidence of N images.

    Arguments:
        log_p: log p(x), (N,), nats.
        error: How far it may be off, as far as the cells tell, (N,), nats: see the module.
    """

    log_p: NDArray[np.float64]
    error: NDArray[np.float64]


@torch.no_grad()
def evidence(
    vae: VAE,
    images: Tensor,
    *,
    device: str | torch.device | None = None,
    tolerance: float = 1e-3,
    most_points: int = 2**23,
    on_step: Callable[[str, int, int], None] | None = None,
) -> Evidence:
    """Integrates the evidence of a fitted model, D = 1 or 2.

    Densities are float64 if the model is, else float32; sums are float64. The memory is about half
    a gigabyte at 784 pixels, and grows with the images by some hundred cells each.

    Warning:
        The error is what the cells tell, not a bound; see the module for what they cannot see.
        float32 itself errs by up to some 1e-4 nats, which it leaves out.

    Arguments:
        vae: The model; a copy is integrated, on `device`.
        images: The images as uint8 in {0, 1}, (N, P).
        device: Where to compute; where the model is if none.
        tolerance: The error below which an image's cells are divided no more, nats.
        most_points: The most points that are decoded before all division ends, the coarse grid's
            not counted: images that want more have an error above the tolerance.
        on_step: Called with a phase's name and how much of it is done, of how much.

    Returns:
        log p(x) and its error.

    Raises:
        InputError: There are more than two latent features or no images, they are not as large as
            the model's, their pixels are not 0 and 1, the tolerance is not above zero, or
            log p(x, z) is not a number somewhere.

    Example:
        >>> from flowvae import Trial, build, load_data
        >>> trial = Trial(prior="gauss", latent=1, net="mlp[hidden=8]")
        >>> data = load_data(trial.dataset)
        >>> exact = evidence(build(trial, data.shape), data.test[:3])
        >>> exact.log_p.shape, bool((exact.error < 1e-3).all())
        ((3,), True)
    """
    if vae.latent > MAX_FEATURES:
        raise InputError(
            f"cannot integrate over {vae.latent} latent features: quadrature takes at most "
            f"{MAX_FEATURES}; anneal brackets the evidence of more"
        )
    if not len(images):
        raise InputError("there are no images to integrate the evidence of")
    if images.shape[1:] != (math.prod(vae.shape),):
        height, width = vae.shape
        raise InputError(
            f"cannot integrate images of shape {tuple(images.shape)}: this model takes "
            f"(N, {height * width}), flat images of {height} x {width} pixels"
        )
    check_pixels(images)
    if not tolerance > 0:
        raise InputError(f"bad tolerance {tolerance}: expected nats above 0, such as 1e-3")
    device = torch.device(device or next(vae.parameters()).device)
    model = sharp(vae, device)
    with matrix_products(model.precision, device):
        integral = _Integral(model, images.to(device), tolerance, most_points, on_step)
        return Evidence(*integral.solve().cpu().numpy())


class _Pairs(NamedTuple):
    """Cells of one level that are to be divided for an image, by cell.

    Arguments:
        image: Which image, (M,).
        key: Which cell, (M,); see `Axes.index`.
        mass: The log of what its parts could hold together: see `_inherited`, (M,), nats.
    """

    image: Tensor
    key: Tensor
    mass: Tensor


class _Integral:
    """The integral of p(x, z) over z for N images, while cells are divided.

    Arguments:
        model: The model.
        x: The images, (N, P), on the model's device.
        tolerance: See `evidence`.
        most_points: See `evidence`.
        on_step: See `evidence`.
    """

    def __init__(
        self,
        model: VAE,
        x: Tensor,
        tolerance: float,
        most_points: int,
        on_step: Callable[[str, int, int], None] | None,
    ) -> None:
        drawn = _draws(model)
        freeze_prior(model)
        self.model, self.x, self.features = model, x, model.latent
        self.likelihood = model.likelihood
        self.dtype = DTYPES[model.precision]
        self.tolerance, self.points_left = tolerance, most_points
        self.on_step = on_step or (lambda phase, done, total: None)
        self.neglect = math.log(NEGLIGIBLE_SHARE * min(tolerance, 0.1))
        first, *others = [model.encode(some).map(Tensor.double) for some in x.split(POINTS)]
        posterior = first.join(others)
        self.mean, self.std = posterior.mean, posterior.std
        self.axes = Axes.around(drawn.to(self.mean), self.mean, self.std)
        self.bits = self.axes.parts
        self.beside = self._beside()
        shape = (len(x),)
        # of each image, log masses: in all, in cells that are divided no more, beyond the grid
        self.total, self.settled, self.beyond = self.mean.new_full((3, *shape), -math.inf)
        self.error = self.mean.new_full(shape, math.inf)

    def solve(self) -> Tensor:
        """Returns log p(x) and its error, (2, N), float64."""
        grid = self.axes.cells**self.features
        at_once = max(1, BUDGET // (8 * grid))
        waiting: list[_Pairs] = []
        kept: list[tuple[Tensor, Tensor]] = []
        for first in range(0, len(self.x), at_once):
            images = torch.arange(first, min(first + at_once, len(self.x)), device=self.x.device)
            waiting += self._coarse(images, kept)
            self.on_step("grid", int(images[-1]) + 1, len(self.x))
            last = first + at_once >= len(self.x)
            if last or sum(len(pairs.key) for pairs in waiting) > PAIRS:
                self._refine(_Pairs(*map(torch.cat, zip(*waiting, strict=True))))
                waiting = []
        if bad := int((~self.total.isfinite()).sum()):
            raise InputError(f"log p(x) is not finite on {bad} of {len(self.x)} images")
        beyond_axes = torch.log1p((self.beyond - self.total).exp())
        return torch.stack([self.total, torch.maximum(self.error, beyond_axes)])

    def _beside(self) -> Tensor:
        """Returns the largest log p(x, z) at an encoder's mean and beside it, (N,), nats."""
        steps = torch.eye(self.features, dtype=self.std.dtype, device=self.std.device)
        steps = torch.cat([0 * steps[:1], steps, -steps])
        z = self.mean[:, None] + self.std[:, None] * steps  # (N, 2 D + 1, D)
        peaks = []
        for some, x in zip(z.split(POINTS // 8), self.x.split(POINTS // 8), strict=True):
            logits, rest = self._decode(some.flatten(0, 1))
            logits, rest = (each.unflatten(0, some.shape[:2]) for each in (logits, rest))
            log_p = self.likelihood.products(x, logits) + rest
            peaks.append(log_p.amax(dim=1).double())
        return torch.cat(peaks)

    def _decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits l (n, P) and log p(z) - sum_i softplus(l_i), (n,), for points (n, D)."""
        z = z.to(self.dtype)
        logits = self.model.decode(z)
        rest = self.model.prior().log_prob(z) - self.likelihood.log_normaliser(logits)
        bad = rest.isnan() | (rest == math.inf)
        if bad.any():
            where = ", ".join(f"{value:.4g}" for value in z[bad][0].tolist())
            raise InputError(f"log p(x, z) is not a number at z = ({where})")
        return logits.where(rest.isfinite()[:, None], 0), rest

    def _grid(self, kept: list[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields logits and what else a coarse cell's log mass is made of, for parts of the grid.

        Parts are decoded once if there is room to keep them.
        """
        if kept:
            yield from kept
            return
        cells = self.axes.cells**self.features
        size = torch.finfo(self.dtype).bits // 8
        keep = cells * self.x.shape[1] * size <= BUDGET
        for keys in torch.arange(cells, device=self.x.device).split(POINTS):
            z, log_volume = self.axes.middle(self.axes.index(keys, 0), 0)
            logits, rest = self._decode(z)
            part = logits, rest + log_volume.to(self.dtype)
            if keep:
                kept.append(part)
            yield part

    def _coarse(self, images: Tensor, kept: list[tuple[Tensor, Tensor]]) -> list[_Pairs]:
        """Sums over the coarse cells; returns those to be divided."""
        x = self.x[images].to(self.dtype)
        log_mass = torch.cat(
            [self.likelihood.all_products(x, *part) for part in self._grid(kept)], dim=1
        )  # (n, cells)
        few = max(1, BUDGET // (64 * log_mass.shape[1]))
        parts = zip(images.split(few), log_mass.split(few), strict=True)
        return [self._coarse_sums(*part) for part in parts]

    def _coarse_sums(self, images: Tensor, mass: Tensor) -> _Pairs:
        """Sums over coarse cells of log mass (n, cells); returns those to be divided."""
        axes = (self.axes.cells,) * self.features
        along = mass.unflatten(1, axes)
        could = along.clone()
        for axis in range(1, 1 + self.features):
            (slope,) = torch.gradient(along, dim=axis)
            could += slope.nan_to_num_(0, 0, 0).abs_().div_(2)
        could = torch.maximum(could, self._near_coarse(images))
        if (empty := along == -math.inf).any():  # beside the end of a support, half may be in it
            pool = nn.functional.max_pool1d if self.features == 1 else nn.functional.max_pool2d
            could = torch.where(empty, pool(could, 3, stride=1, padding=1), could)
        could = could.flatten(1)
        self.beyond[images] = beyond_axes(could, axes)

        top = mass.amax(dim=1, keepdim=True)
        share = shares(mass, top)
        # every second cell along each axis: grids twice as wide
        halves = share.unflatten(1, [n for cells in axes for n in (cells // 2, 2)])
        shifted = halves.sum(dim=tuple(range(1, 2 * self.features, 2)), dtype=torch.float64)
        shifted, top = shifted.flatten(1), top[:, 0].double()
        total = shifted.sum(dim=1)
        self.total[images] = top + total.log()
        off = (len(self.bits) * shifted / total[:, None]).log().abs().amax(dim=1)
        hidden = log_sum(could.masked_fill(could <= mass + HIDDEN_EXCESS, -math.inf))
        self.error[images] = torch.maximum(off, torch.log1p((hidden - top).exp() / total))

        least = torch.where(self.error[images] < self.tolerance, math.inf, self.neglect)
        divided = could > (self.total[images] + least).to(self.dtype)[:, None]
        rest = share.masked_fill_(divided, 0).sum(dim=1, dtype=torch.float64)
        self.settled[images] = top + rest.log()
        row, cell = divided.nonzero(as_tuple=True)
        return _Pairs(images[row], cell, _inherited(mass[divided], could[divided]))

    def _near_coarse(self, images: Tensor) -> Tensor:
        """Returns what coarse cells could hold beside an encoder's mean, (n, *axes), nats."""
        edges = torch.arange(self.axes.cells + 1, device=self.x.device)
        edges = self.axes.edge(edges[:, None].expand(-1, self.features), 0)
        length, wide = self._overlap(edges[:-1], edges[1:], images)  # (n, cells, D)
        ways = range(self.features)
        cells = [[1] * axis + [-1] + [1] * (self.features - 1 - axis) for axis in ways]
        near = self.beside[images].view(-1, *[1] * self.features)
        for axis in ways:
            near = near + length[..., axis].log().unflatten(1, cells[axis])
        coarse = sum(wide[..., axis].unflatten(1, cells[axis]).int() for axis in ways)
        return torch.where(torch.as_tensor(coarse > 0), near, -math.inf).to(self.dtype)

    def _overlap(self, low: Tensor, high: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns how much of cells is beside the encoder's mean, and whether they are wide.

        Along each axis, (n, c, D), for the edges of cells, (c, D) or (n, c, D).
        """
        mean, std = self.mean[images][:, None], self.std[images][:, None]
        overlap = torch.minimum(high, mean + NEAR * std) - torch.maximum(low, mean - NEAR * std)
        return overlap.clamp(min=0), high - low > std

    def _refine(self, pairs: _Pairs) -> None:
        """Divides cells, level by level, until no image needs it or a limit is reached."""
        for level in range(MAX_LEVELS):
            key, order = pairs.key.sort()
            pairs = _Pairs(pairs.image[order], key, pairs.mass[order])
            keys, counts = key.unique_consecutive(return_counts=True)
            self.points_left -= len(keys) * len(self.bits)
            if not len(keys) or self.points_left < 0:
                return
            mass = self._parts(pairs, keys, counts, level)
            pairs = self._sums(pairs, mass, self._could(pairs, mass, level))
            done = int((self.error < self.tolerance).sum())
            self.on_step("division", done, len(self.x))

    def _parts(self, pairs: _Pairs, keys: Tensor, counts: Tensor, level: int) -> Tensor:
        """Returns the log masses of the 2^D parts of each pair's cell, (M, 2^D)."""
        parts = pairs.mass.new_empty(len(pairs.key), len(self.bits))
        cell = torch.arange(len(keys), device=keys.device).repeat_interleave(counts)
        ends = counts.cumsum(0).tolist()
        step = POINTS // len(self.bits)
        for first in range(0, len(keys), step):
            index = 2 * self.axes.index(keys[first : first + step], level)[:, None] + self.bits
            z, log_volume = self.axes.middle(index, level + 1)  # (c, 2^D, D), (c, 2^D)
            logits, rest = self._decode(z.flatten(0, 1))
            rest = rest + log_volume.flatten().to(self.dtype)
            for at in range(first, min(first + step, len(keys)), BLOCK):
                last = min(at + BLOCK, first + step, len(keys))
                mine = slice(ends[at - 1] if at else 0, ends[last - 1])
                points = slice((at - first) * len(self.bits), (last - first) * len(self.bits))
                images, row = pairs.image[mine].unique(return_inverse=True)
                x = self.x[images]
                dense = self.likelihood.all_products(x, logits[points], rest[points])
                dense = dense.unflatten(1, (last - at, -1))  # (n, cells, 2^D)
                parts[mine] = dense[row, cell[mine] - at]
        return parts

    def _could(self, pairs: _Pairs, mass: Tensor, level: int) -> Tensor:
        """Returns what the parts (M, 2^D) could hold: log masses, nats."""
        along = mass.unflatten(1, (2,) * self.features)
        could = along.clone()
        for axis in range(1, 1 + self.features):
            rise = along.diff(dim=axis).nan_to_num_(0, 0, 0).abs_()
            could += rise / 2
        could = torch.maximum(could.flatten(1), pairs.mass[:, None] - self.features * math.log(2))
        for some in torch.arange(len(mass), device=mass.device).split(PAIRS // 8):
            index = 2 * self.axes.index(pairs.key[some], level)[:, None] + self.bits
            images = pairs.image[some]
            low, high = (self.axes.edge(index + end, level + 1) for end in (0, 1))
            length, wide = self._overlap(low, high, images)
            near = self.beside[images][:, None] + length.log().sum(dim=-1)
            near = near.where(wide.any(dim=-1), -math.inf).to(self.dtype)
            could[some] = torch.maximum(could[some], near)
        return could

    def _sums(self, pairs: _Pairs, mass: Tensor, could: Tensor) -> _Pairs:
        """Sums over the parts of log mass (M, 2^D); returns those to be divided."""
        image = pairs.image
        top = self.settled.scatter_reduce(0, image, mass.amax(dim=1).double(), "amax")
        share = (mass - top[image][:, None]).exp()  # float64
        shifted = torch.zeros(len(top), len(self.bits), dtype=share.dtype, device=share.device)
        shifted.index_add_(0, image, share)
        rest = (self.settled - top).exp()
        total = rest + shifted.sum(dim=1)
        shifted = (rest[:, None] + len(self.bits) * shifted) / total[:, None]
        now = top + total.log()
        off = torch.maximum(shifted.log().abs().amax(dim=1), (self.total - now).abs())
        steep = (could - top[image][:, None]).clamp(max=600).exp()
        steep = steep.masked_fill_(could <= mass + HIDDEN_EXCESS, 0).sum(dim=1)
        hidden = torch.zeros_like(total).index_add_(0, image, steep)
        error = torch.maximum(off, torch.log1p(hidden / total))
        active = torch.zeros_like(total, dtype=torch.bool)
        active[image] = True
        self.total = now.where(active, self.total)
        self.error = error.where(active, self.error)

        least = torch.where(self.error < self.tolerance, math.inf, self.neglect)
        divided = could > (self.total + least)[image][:, None]
        left = share.masked_fill_(divided, 0).sum(dim=1)
        rest = rest.index_add(0, image, left)
        self.settled = (top + rest.log()).where(active, self.settled)
        row, part = divided.nonzero(as_tuple=True)
        key = (pairs.key[row] << self.features) + part
        return _Pairs(image[row], key, _inherited(mass[divided], could[divided]))


def _inherited(mass: Tensor, could: Tensor) -> Tensor:
    """Returns what the parts of cells could hold: log masses by the midpoint, nats.

    Less than half of a cell whose midpoint is outside lies within a convex support.
    """
    return mass.where(mass > -math.inf, could - math.log(2))


def _draws(model: VAE) -> Tensor:
    """Returns draws of the prior, (n, D); none where it has no sampler."""
    try:
        with global_stream(0, "quadrature"):
            drawn = model.prior_on_cpu().sample((DRAWS,))
    except NotImplementedError:  # the posteriors alone tell where it is
        return torch.zeros(0, model.latent)
    return drawn[drawn.isfinite().all(dim=-1)]
