"""The floor: the shortest time of a step on this device with layers as dense matrix products.

One training step of S models on B images each: for every `nn.Linear` of encoder, decoder and prior
(zuko's `MaskedLinear`, whose masked weights are multiplied too, included), of m inputs and n
outputs, the three products

    forward          y  = x W'        (B, m) (m, n)      2 B m n floating-point operations
    weight gradient  dW = dy' x       (n, B) (B, m)      2 B m n
    input gradient   dx = dy W        (B, n) (n, m)      2 B m n, but not for the encoder's first
                                                         layer: images need no gradient

and torch's fused Adam on tensors of the shapes of all parameters, which reads weight, gradient and
two moments and writes all but the gradient: 28 bytes a parameter. Scoring N images by K importance
samples: the forward products of decoder and prior on N K rows, PRODUCT_ROWS at a time (without
the encoder's N rows, a K-th of them).

It includes nothing else: no bias, activation, mask, cast, density, noise, batch gathering,
allocation or launch. Operands and results are allocated once for each layer; on CUDA all products
are one captured graph, which is replayed. Operands have the type of the precision: in `bf16` those
of encoder and decoder are bfloat16 and those of the prior float32; in `tf32` all products round as
TensorFloat-32. The products of a stack are batched. The number of threads is torch's. A layer is
counted once a row, as our bodies and autoregressive flows apply it; a model that skips masked
weights could be faster than this floor.
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
    "PRODUCT_ROWS",
    "Layer",
    "linear_layers",
    "make_adam",
    "make_replayed",
    "make_scoring_products",
    "make_training_products",
    "make_training_step",
    "training_flops",
]


PRODUCT_ROWS = {"cpu": 5000, "cuda": 2**17}
"""Rows of one product when scoring: they fit a CPU's caches, and fill a GPU."""


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


def linear_layers(vae: VAE) -> list[Layer]:
    """Returns the linear layers of a model, in the order encoder, decoder, prior.

    Raises:
        InputError: The model has a convolution, whose products are not counted.
    """
    layers = []
    if any(isinstance(m, nn.modules.conv._ConvNd) for m in vae.modules()):
        raise InputError("the floor counts only linear layers: choose a net without convolutions")
    for part in ("encoder", "decoder", "prior"):
        linear = [m for m in getattr(vae, part).modules() if isinstance(m, nn.Linear)]
        for k, module in enumerate(linear):
            wanted = part != "encoder" or k > 0
            layers.append(Layer(module.in_features, module.out_features, part, wanted))
    return layers


def training_flops(vae: VAE, batch: int) -> int:
    """Counts the floating-point operations of one model's products in one step on `batch` images.

    Example:
        >>> from flowvae import Trial
        >>> from flowvae.models.vae import build
        >>> vae = build(Trial(prior="gauss", latent=16, dataset="mnist"), (28, 28))
        >>> round(training_flops(vae, 256) / 1e9, 2)
        5.35
    """
    return sum(2 * batch * m * n * (2 + wanted) for m, n, _, wanted in linear_layers(vae))


def _operand_type(layer: Layer, precision: str) -> torch.dtype:
    lowered = precision == "bf16" and layer.part != "prior"
    return torch.bfloat16 if lowered else DTYPES[precision]


class _Products:
    """The matrix products of layers, on tensors of their own.

    Arguments:
        shapes: The layers.
        rows: The number of rows B a model.
        members: The number of models S.
        precision: The precision of the products; see `flowvae.numerics.precision`.
        device: The device.
        backward: Whether to include the two products of the gradients.
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
        """Computes all products."""
        for left, right, out in self.triples:
            torch.matmul(left, right, out=out)


def make_replayed(
    call: Callable[[], object], precision: str, device: torch.device
) -> Callable[[], None]:
    """Returns the call under the precision's setting; on CUDA as a captured graph.

    The result keeps `call` alive, whose tensors the graph reads and writes.
    """

    def under_setting() -> None:
        with matrix_products(precision, device):
            call()

    if device.type != "cuda":
        return under_setting
    with torch.cuda.device(device):
        side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # a capture needs a warm allocator and warm libraries
            for _ in range(3):
                under_setting()
        # the default stream of captures belongs to the device of the process's first capture
        with torch.cuda.graph(graph, stream=side):
            under_setting()
        torch.cuda.current_stream().wait_stream(side)
    return partial(_replay_graph, graph, call)


def _replay_graph(graph: torch.cuda.CUDAGraph, _: object) -> None:
    graph.replay()


def _make_adam_step(vae: VAE, members: int, device: torch.device) -> Callable[[], object]:
    free = []
    for parameter in (p for p in vae.parameters() if p.requires_grad):
        value = torch.empty(members, *parameter.shape, dtype=parameter.dtype, device=device)
        free.append(nn.Parameter(value.normal_(generator=torch.Generator(device).manual_seed(0))))
        free[-1].grad = torch.full_like(value, 1e-3)
    optimiser = torch.optim.Adam(free, fused=True, capturable=device.type == "cuda")
    return optimiser.step


def make_training_products(
    vae: VAE, batch: int, *, members: int = 1, precision: str = "float32", device: torch.device
) -> Callable[[], None]:
    """Returns a call that computes the matrix products of one training step.

    Arguments:
        vae: The model with these shapes.
        batch: The number of images B a model.
        members: The number of models S in the stack.
        precision: The precision of the products; see `flowvae.numerics.precision`.
        device: The device.

    Raises:
        InputError: In the first call, if the device does not have the precision.
    """
    products = _Products(linear_layers(vae), batch, members, precision, device, backward=True)
    return make_replayed(products, precision, device)


def make_adam(vae: VAE, *, members: int = 1, device: torch.device) -> Callable[[], None]:
    """Returns a call that takes one step of fused Adam on tensors of the parameters' shapes."""
    return make_replayed(_make_adam_step(vae, members, device), "float32", device)


def make_training_step(
    vae: VAE, batch: int, *, members: int = 1, precision: str = "float32", device: torch.device
) -> Callable[[], None]:
    """Returns the floor of a training step: the products, then Adam, as one call."""
    products = _Products(linear_layers(vae), batch, members, precision, device, backward=True)
    update = _make_adam_step(vae, members, device)

    def both() -> None:
        products()
        update()

    return make_replayed(both, precision, device)


def make_scoring_products(
    vae: VAE, rows: int, *, precision: str = "float32", device: torch.device
) -> Callable[[], None]:
    """Returns the floor of scoring `rows` latents: the products of decoder and prior.

    Arguments:
        vae: The model with these shapes.
        rows: The number of images times the number of importance samples; rounded
            up to passes of equal size, of at most PRODUCT_ROWS.
        precision: The precision of the products; see `flowvae.numerics.precision`.
        device: The device.
    """
    shapes = [layer for layer in linear_layers(vae) if layer.part != "encoder"]
    passes = math.ceil(rows / PRODUCT_ROWS[device.type])
    one = _Products(shapes, math.ceil(rows / passes), 1, precision, device, backward=False)
    once = make_replayed(one, precision, device)

    def all_passes() -> None:
        for _ in range(passes):
            once()

    return all_passes
