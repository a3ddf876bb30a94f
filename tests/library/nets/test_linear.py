"""The linear layer of the bodies: torch's own, alone and stacked, without the copies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from flowvae.nets.linear import Linear
from flowvae.numerics.streams import generator

MODELS, INPUTS, OUTPUTS = 3, 5, 4


def normal(device: torch.device, *shape: int) -> Tensor:
    drawn = torch.randn(shape, dtype=torch.float64, generator=generator(0, "test"))
    return drawn.to(device).requires_grad_()


def parts(device: torch.device, *rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs, weights and biases of a stack, all with gradients."""
    sizes = (rows + (INPUTS,), (OUTPUTS, INPUTS), (OUTPUTS,))
    x, weight, bias = (normal(device, MODELS, *size) for size in sizes)
    return x, weight, bias


def stacked(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    layer = Linear(INPUTS, OUTPUTS, device="meta")
    layer.stacked = True

    def one(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    return vmap(one)(x, weight, bias)


@pytest.mark.parametrize("rows", [(6,), (2, 3)], ids=str)
def test_values_and_gradients_are_torchs(rows: tuple[int, ...], device: torch.device) -> None:
    found, expected = parts(device, *rows), parts(device, *rows)
    y = stacked(*found)
    each = [nn.functional.linear(*one) for one in zip(*expected, strict=True)]
    ways = normal(device, *y.shape).detach()
    for value, way in ((y, ways), (torch.stack(each), ways)):
        (value.square() * way).sum().backward()
    torch.testing.assert_close(y, torch.stack(each))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("rows", [(6,), (2, 3)], ids=str)
def test_what_follows_may_change_it_in_place(rows: tuple[int, ...], device: torch.device) -> None:
    x, weight, bias = parts(device, *rows)
    layer = Linear(INPUTS, OUTPUTS, device="meta")
    state = {"weight": weight[0], "bias": bias[0]}
    alone = functional_call(layer, state, (x[0],)).relu_()
    (alone.sum() + stacked(x, weight, bias).relu_().sum()).backward()
    assert weight.grad is not None


@pytest.mark.parametrize("frozen", range(3))
def test_what_needs_no_gradient_gets_none(frozen: int, device: torch.device) -> None:
    for alone in (True, False):
        tensors = [t.detach().requires_grad_(k != frozen) for k, t in enumerate(parts(device, 6))]
        if alone:
            tensors = [t[0].detach().requires_grad_(t.requires_grad) for t in tensors]
            layer = Linear(INPUTS, OUTPUTS, device="meta")
            state = {"weight": tensors[1], "bias": tensors[2]}
            functional_call(layer, state, (tensors[0],)).sum().backward()
        else:
            stacked(*tensors).sum().backward()
        assert [t.grad is None for t in tensors] == [k == frozen for k in range(3)]


class Copies(TorchDispatchMode):
    """Collects the shapes of what is copied."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        if func.name().split(".")[0] in ("aten::clone", "aten::copy_"):
            self.shapes.append(args[0].shape)
        return func(*args, **(kwargs or {}))


def test_gradients_of_stacked_weights_are_not_copied(device: torch.device) -> None:
    x, weight, bias = parts(device, 6)
    with Copies() as seen:
        stacked(x, weight, bias).sum().backward()
    assert weight.shape not in seen.shapes
    with Copies() as plain:  # torch's own are: else the layer is of no use any more
        vmap(nn.functional.linear)(x, weight.detach().requires_grad_(), bias).sum().backward()
    assert weight.shape in plain.shapes
