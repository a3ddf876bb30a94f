"""The floor: the least that a step costs on this device if its layers are dense matrix products.

One training step of S models on B images each: for every `nn.Linear` of encoder, decoder and prior
(zuko's `MaskedLinear`, whose masked weights are multiplied too, included), of m inputs and n
outputs, the three products

    forward          y  = x W'        (B, m) (m, n)      2 B m n floating-point operations
    weight gradient  dW = dy' x       (n, B) (B, m)      2 B m n
    input gradient   dx = dy W        (B, n) (n, m)      2 B m n, but not for the encoder's first
                                                         layer: images need no gradient

and torch's fused Adam on tensors of the shapes of all parameters, which reads weight, gradient and
two moments and writes all but the gradient: 28 bytes a parameter. Scoring N images by K importance
samples: the forward products of decoder and prior on N K rows, ROWS at a time (the encoder's N
rows, a K-th of them, are left out).

Nothing else is in it: no bias, activation, mask, cast, density, noise, batch gathering, allocation
or launch. Operands and results are allocated once, each layer has its own; on CUDA the whole is
one captured graph, replayed. Operands have the type that the precision gives the products: in
`bf16` those of encoder and decoder are bfloat16, those of the prior stay float32; in `tf32` all
round as TensorFloat-32. A stack's products are batched. Threads are torch's. A layer is counted
once a row, as our bodies and autoregressive flows apply it; a model that skips what masks set to
zero could be faster than this floor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowvae.errors import InputError
from flowvae.models.vae import VAE
from flowvae.numerics.precision import DTYPES, matrix_products
from flowvae.numerics.streams import generator

__all__ = [
    "ROWS",
    "Layer",
    "adam",
    "layers",
    "replayed",
    "scoring_products",
    "training_flops",
    "training_products",
    "training_step",
]


ROWS = {"cpu": 5000, "cuda": 2**17}
"""Rows of one product when scoring: near a CPU's caches, and enough to fill a GPU."""


class Layer(NamedTuple):
    """A linear layer's products.

    Arguments:
        inputs: The number of input features m.
        outputs: The number of output features n.
        part: `encoder`, `decoder` or `prior`.
        input_gradient: Whether training needs the gradient of its input.
    """

    inputs: int
    outputs: int
    part: str
    input_gradient: bool


def layers(vae: VAE) -> list[Layer]:
    """Returns the linear layers of a model, in the order encoder, decoder, prior.

    Raises:
        InputError: There is a convolution, whose products are not counted.
    """
    found = []
    if any(isinstance(m, nn.modules.conv._ConvNd) for m in vae.modules()):
        raise InputError("the floor counts linear layers alone: take a net without convolutions")
    for part in ("encoder", "decoder", "prior"):
        linear = [m for m in getattr(vae, part).modules() if isinstance(m, nn.Linear)]
        for k, module in enumerate(linear):
            wanted = part != "encoder" or k > 0
            found.append(Layer(module.in_features, module.out_features, part, wanted))
    return found


def training_flops(vae: VAE, batch: int) -> int:
    """Counts the floating-point operations of one model's products in one step on `batch` images.

    Example:
        >>> from flowvae import Trial
        >>> from flowvae.models.vae import build
        >>> vae = build(Trial(prior="gauss", latent=16, dataset="mnist"), (28, 28))
        >>> round(training_flops(vae, 256) / 1e9, 2)
        5.35
    """
    return sum(2 * batch * m * n * (2 + wanted) for m, n, _, wanted in layers(vae))


def _operand_type(layer: Layer, precision: str) -> torch.dtype:
    lowered = precision == "bf16" and layer.part != "prior"
    return torch.bfloat16 if lowered else DTYPES[precision]


class _Products:
    """The products of some layers on tensors of their own.

    Arguments:
        shapes: The layers.
        rows: The number of rows B a model.
        members: The number of models S.
        precision: That of the products; see `flowvae.numerics.precision`.
        device: Where.
        backward: Whether the two products of the gradients are wanted too.
    """

    def __init__(
        self,
        shapes: Sequence[Layer],
        rows: int,
        members: int,
        precision: str,
        device: torch.device,
        *,
        backward: bool,
    ) -> None:
        stream = generator(0, "floor")
        self.triples: list[tuple[Tensor, Tensor, Tensor]] = []  # left, right, result
        many = (members,) * (members > 1)
        for layer in shapes:
            dtype, (m, n) = _operand_type(layer, precision), layer[:2]

            def drawn(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
                one = torch.randn(shape, generator=stream)  # one draw serves all members
                return one.to(device, dtype).repeat(*many, 1, 1)

            x, weight = drawn(rows, m), drawn(n, m)
            self.triples.append((x, weight.mT, x.new_empty(*many, rows, n)))
            if backward:
                dy = drawn(rows, n)
                self.triples.append((dy.mT, x, torch.empty_like(weight)))
                if layer.input_gradient:
                    self.triples.append((dy, weight, torch.empty_like(x)))

    def __call__(self) -> None:
        """Multiplies."""
        for left, right, out in self.triples:
            torch.matmul(left, right, out=out)


def replayed(
    call: Callable[[], object], precision: str, device: torch.device
) -> Callable[[], None]:
    """Returns the call under the precision's setting; on CUDA as a captured graph.

    What is returned keeps `call` alive: the graph reads and writes the tensors that it holds.
    """

    def under_setting() -> None:
        with matrix_products(precision, device):
            call()

    if device.type != "cuda":
        return under_setting
    with torch.cuda.device(device):
        side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # capture wants a warm allocator and warm libraries
            for _ in range(3):
                under_setting()
        # The default stream of captures belongs to the device of the process's first one.
        with torch.cuda.graph(graph, stream=side):
            under_setting()
        torch.cuda.current_stream().wait_stream(side)
    return partial(_replay, graph, call)


def _replay(graph: torch.cuda.CUDAGraph, _: object) -> None:
    graph.replay()


def _adam_step(vae: VAE, members: int, device: torch.device) -> Callable[[], object]:
    free = []
    for parameter in (p for p in vae.parameters() if p.requires_grad):
        value = torch.empty(members, *parameter.shape, dtype=parameter.dtype, device=device)
        free.append(nn.Parameter(value.normal_(generator=torch.Generator(device).manual_seed(0))))
        free[-1].grad = torch.full_like(value, 1e-3)
    optimiser = torch.optim.Adam(free, fused=True, capturable=device.type == "cuda")
    return optimiser.step


def training_products(
    vae: VAE, batch: int, *, members: int = 1, precision: str = "float32", device: torch.device
) -> Callable[[], None]:
    """Returns a call that multiplies what one training step multiplies.

    Arguments:
        vae: The model, of which the shapes are taken.
        batch: The number of images B a model.
        members: The number of models S in the stack.
        precision: That of the products; see `flowvae.numerics.precision`.
        device: Where.

    Raises:
        InputError: At the first call: the device does not have the precision.
    """
    products = _Products(layers(vae), batch, members, precision, device, backward=True)
    return replayed(products, precision, device)


def adam(vae: VAE, *, members: int = 1, device: torch.device) -> Callable[[], None]:
    """Returns a call that takes one step of fused Adam on tensors of the parameters' shapes."""
    return replayed(_adam_step(vae, members, device), "float32", device)


def training_step(
    vae: VAE, batch: int, *, members: int = 1, precision: str = "float32", device: torch.device
) -> Callable[[], None]:
    """Returns the floor of a training step: `training_products`, then `adam`, as one call."""
    products = _Products(layers(vae), batch, members, precision, device, backward=True)
    update = _adam_step(vae, members, device)

    def both() -> None:
        products()
        update()

    return replayed(both, precision, device)


def scoring_products(
    vae: VAE, rows: int, *, precision: str = "float32", device: torch.device
) -> Callable[[], None]:
    """Returns the floor of scoring `rows` latents: the products of decoder and prior.

    Arguments:
        vae: The model, of which the shapes are taken.
        rows: The number of images times the number of importance samples; what ROWS does not
            divide is rounded up to passes of equal size.
        precision: That of the products; see `flowvae.numerics.precision`.
        device: Where.
    """
    shapes = [layer for layer in layers(vae) if layer.part != "encoder"]
    passes = math.ceil(rows / ROWS[device.type])
    one = _Products(shapes, math.ceil(rows / passes), 1, precision, device, backward=False)
    once = replayed(one, precision, device)

    def all_passes() -> None:
        for _ in range(passes):
            once()

    return all_passes
