"""The bodies: a contract for every registered net, and each net against its formula."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F  # noqa: N812

from flowvae.data import Dataset
from flowvae.errors import InputError
from flowvae.models.vae import build
from flowvae.nets import NETS, Bodies
from flowvae.numerics.precision import matrix_products
from flowvae.numerics.streams import generator, global_stream
from flowvae.specs.registry import Spec
from flowvae.specs.values import Value, write
from flowvae.training.trainer import fit
from flowvae.trial import Trial

SHAPES = [(28, 28), (8, 8), (7, 5), (6, 1), (1, 1)]
LATENT = 3


@pytest.fixture(params=list(NETS))
def net(request: pytest.FixtureRequest) -> str:
    """Every registered net in turn, small and without clamps."""
    return small_net(request.param)


def small_net(name: str, **changes: Value) -> str:
    """Write the spec of a small net without clamps, but for the changes."""
    small = {"hidden": (9, 7), "channels": 2, "logvar_min": None, "logvar_max": None}
    known = NETS[name].options
    options = {k: write(v) for k, v in {**small, **changes}.items() if k in known}
    return str(Spec(name, tuple(options.items())))


def default_bounds(name: str) -> dict[str, Value]:
    return {k: v for k, v in NETS[name].options.items() if k.startswith("logvar")}


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(0, "test"))


def made(
    net: str, device: torch.device, shape: tuple[int, int] = (7, 5), seed: int = 0
) -> Iterator[tuple]:
    """Yield each body in float64 with five inputs and the number of its outputs."""
    pixels, bodies = math.prod(shape), NETS.build(net, shape, LATENT)
    for make, inputs, outputs in zip(bodies, (pixels, LATENT), (2 * LATENT, pixels), strict=True):
        with global_stream(seed, "test"):
            body = make()
        yield body.to(device, torch.float64), normal(5, inputs).to(device), outputs


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_have_their_shapes_and_each_its_own_example(
    net: str, shape: tuple[int, int], device: torch.device
) -> None:
    for body, x, outputs in made(net, device, shape):
        before, found = x.clone(), body(x)
        assert found.shape == (5, outputs)
        assert torch.equal(x, before)
        alone = torch.cat([body(one) for one in x.split(1)])
        torch.testing.assert_close(found, alone, rtol=1e-12, atol=1e-12)
        assert not (found[0] == found[1]).all()


def test_gradient_reaches_every_parameter_and_agrees_with_finite_differences(
    net: str, device: torch.device
) -> None:
    """Along random directions in the space of all parameters."""
    stream, step = generator(1, "test"), 1e-7
    for body, x, outputs in made(net, device):
        weights = normal(5, outputs).to(device)
        (body(x) * weights).sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in body.parameters())
        for _ in range(3):
            ways = [
                torch.randn(p.shape, dtype=p.dtype, generator=stream).to(device)
                for p in body.parameters()
            ]
            values, slope = [], 0.0
            with torch.no_grad():
                for sign in (1, -2, 1):  # to +step, to -step, and back
                    for p, way in zip(body.parameters(), ways, strict=True):
                        p += sign * step * way
                    values.append((body(x) * weights).sum().item())
            for p, way in zip(body.parameters(), ways, strict=True):
                slope += (p.grad * way).sum().item()
            assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4, abs=1e-5)


def test_stack_equals_its_members(net: str, device: torch.device) -> None:
    """Outputs and gradients of models with stacked weights, each on inputs of its own."""
    for models in zip(*(made(net, device, seed=seed) for seed in range(3)), strict=True):
        bodies = [body for body, _, _ in models]
        x = normal(3, *models[0][1].shape).to(device)
        weights = normal(3, 5, models[0][2]).to(device)
        skeleton = copy.deepcopy(bodies[0]).to("meta")

        def loss(
            state: dict[str, Tensor], x: Tensor, weights: Tensor, skeleton: nn.Module = skeleton
        ) -> Tensor:
            return (functional_call(skeleton, state, (x,)) * weights).sum()

        state, buffers = stack_module_state(bodies)
        assert not buffers  # what a fitted model keeps is its parameters
        found = vmap(grad(loss))(state, x, weights)
        values = vmap(loss)(state, x, weights)
        for s, body in enumerate(bodies):
            value = (body(x[s]) * weights[s]).sum()
            value.backward()
            torch.testing.assert_close(values[s], value, rtol=1e-12, atol=1e-12)
            for name, p in body.named_parameters():
                torch.testing.assert_close(found[name][s], p.grad, rtol=1e-11, atol=1e-11)


def test_copies_and_lower_precisions_compute_the_same(net: str, device: torch.device) -> None:
    for body, x, outputs in made(net, device):
        expected = body(x)
        torch.testing.assert_close(copy.deepcopy(body)(x), expected, rtol=0, atol=0)
        twin = copy.deepcopy(body).float()
        with matrix_products("float32", device):
            single = twin(x.float()).double()
        torch.testing.assert_close(single, expected, rtol=1e-4, atol=1e-4)
        with torch.autocast(device.type, torch.bfloat16):
            lowered = twin(x.float())
        lowered.sum().backward()
        assert lowered.dtype == torch.bfloat16
        assert all(p.grad.dtype == torch.float32 for p in twin.parameters())
        assert 0 < (lowered - expected).abs().max() < 0.05 * (1 + expected.abs().max())
        # A device without values: nothing can branch on them, so a CUDA graph can hold it.
        assert body.to("meta")(x.to("meta")).shape == (5, outputs)


def test_initial_weights_come_from_the_stream_alone(net: str, device: torch.device) -> None:
    states = []
    for seed, disturbance in [(0, 1), (0, 2), (1, 1)]:
        torch.manual_seed(disturbance)
        states.append([body.state_dict() for body, _, _ in made(net, device, seed=seed)])
    for a, again, b in zip(*states, strict=True):
        assert all(torch.equal(a[key], again[key]) for key in a)
        assert all(not torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("bounds", [(-6, 2), (-1.3, -0.1), (None, 0.7), (-3, None)], ids=str)
def test_log_variance_is_clamped_to_its_bounds(
    name: str, bounds: tuple[float | None, float | None], device: torch.device
) -> None:
    """To the bit, in float32 too; the mean is left alone, and so is the decoder."""
    least, most = bounds
    (free, x, _), (free_decoder, _, _) = made(small_net(name), device, (4, 3))
    clamped = small_net(name, logvar_min=least, logvar_max=most)
    (bound, _, _), (decoder, _, _) = made(clamped, device, (4, 3))
    assert str(decoder) == str(free_decoder)
    for dtype in (torch.float64, torch.float32):
        inputs = (x * torch.logspace(-2, 5, 5, dtype=x.dtype)[:, None].to(device)).to(dtype)
        mean, log_std = free.to(dtype)(inputs).chunk(2, dim=-1)
        found_mean, found_log_std = bound.to(dtype)(inputs).chunk(2, dim=-1)
        assert torch.equal(found_mean, mean)
        assert torch.equal(2 * found_log_std, (2 * log_std).clamp(least, most))
        assert least is None or (2 * found_log_std).min() == torch.tensor(least, dtype=dtype)
        assert most is None or (2 * found_log_std).max() == torch.tensor(most, dtype=dtype)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("bounds", ["logvar_min=2,logvar_max=-6", "logvar_min=1,logvar_max=1"])
def test_bounds_without_room_are_refused(name: str, bounds: str) -> None:
    with pytest.raises(
        InputError, match=r"logvar_min . is not below logvar_max .*: expected, for"
    ):
        NETS.build(f"{name}[{bounds}]", (4, 3), 2)


@pytest.mark.parametrize("name", NETS)
def test_training_raises_the_bound(name: str, small: Dataset, device: torch.device) -> None:
    spec = small_net(name, **default_bounds(name))
    trial = Trial(prior="gauss", latent=2, net=spec, epochs=3, batch=25, lr=1e-2)
    (fitted,) = fit([trial], small, device=device)
    elbo = fitted.history["valid/elbo"]
    assert fitted.status == "complete"
    assert elbo[-1] > elbo[0] + 1  # nats an image


def test_defaults_are_those_of_the_sources() -> None:
    assert [NETS.resolve(name) for name in ("mlp", "gated", "resnet")] == [
        "mlp[hidden=1024x1024]",
        "gated[hidden=300x300,logvar_min=-6,logvar_max=2]",
        "resnet[channels=16,logvar_min=none,logvar_max=none]",
    ]


def test_options_of_the_mlp_that_came_later_leave_it_as_it_was() -> None:
    """Stored trials keep their ids, saved models their names, streams their weights."""
    assert NETS.resolve("mlp[logvar_max=none]") == "mlp[hidden=1024x1024]"
    assert NETS.resolve("mlp[logvar_min=-6]") == "mlp[hidden=1024x1024,logvar_min=-6]"
    vae = build(Trial(prior="gauss", latent=2, net="mlp[hidden=7x5]", seed=4), (4, 3))
    names = [f"{k}.{kind}" for k in (0, 2, 4) for kind in ("weight", "bias")]
    for part, widths in [("encoder", [12, 7, 5, 4]), ("decoder", [2, 5, 7, 12])]:
        body = getattr(vae, part)
        with global_stream(4, f"initial {part}"):
            layers = [nn.Linear(m, n) for m, n in zip(widths, widths[1:], strict=False)]
        expected = [p for layer in layers for p in (layer.weight, layer.bias)]
        assert list(body.state_dict()) == names
        assert [type(m).__name__ for m in body] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
        assert all(torch.equal(a, b) for a, b in zip(body.parameters(), expected, strict=True))


def test_mlp_is_the_perceptron_it_says(device: torch.device) -> None:
    """The decoder's widths are reversed, ReLU stands between layers and not after the last."""
    bodies = NETS.build("mlp[hidden=7x5]", (4, 3), 2)
    for body, widths in [(bodies.encoder(), [12, 7, 5, 4]), (bodies.decoder(), [2, 5, 7, 12])]:
        body.to(device)
        matrices = [p for p in body.parameters() if p.ndim == 2]
        assert [m.shape[1] for m in matrices] + [matrices[-1].shape[0]] == widths
        h = x = torch.randn(6, widths[0], device=device)
        layers = list(body.parameters())
        for weight, bias in zip(layers[::2], layers[1::2], strict=True):
            h = h.clamp(min=0) if h is not x else h
            h = h @ weight.T + bias
        torch.testing.assert_close(body(x), h)


def test_gated_is_the_net_it_says(device: torch.device) -> None:
    """Of each layer's two matrices, h's comes first; mean and log std are linear in the last."""
    bodies = NETS.build("gated[hidden=7x5,logvar_min=none]", (4, 3), 2)
    for body, widths in [(bodies.encoder(), [12, 7, 5, 4]), (bodies.decoder(), [2, 5, 7, 12])]:
        body.to(device)
        h = x = torch.randn(6, widths[0], device=device)
        *layers, weight, bias = body.parameters()
        for w, b, width in zip(layers[::2], layers[1::2], widths[1:-1], strict=True):
            assert w.shape == (2 * width, h.shape[1])
            g = h @ w[width:].T + b[width:]
            h = (h @ w[:width].T + b[:width]) / (1 + torch.exp(-g))
        expected = h @ weight.T + bias
        if widths[-1] == 4:
            expected[:, 2:].clamp_(max=1)  # the default log-variance is at most 2
        torch.testing.assert_close(body(x), expected)


def test_gated_starts_from_normal_weights_of_variance_two_over_inputs() -> None:
    with global_stream(0, "test"):
        bodies = [make() for make in NETS.build("gated", (28, 28), 40)]
    for weight, bias in (p for b in bodies for p in zip(*[iter(b.parameters())] * 2, strict=True)):
        inputs = weight.shape[1]
        scaled = weight.detach().flatten().double() / (2 / inputs) ** 0.5
        count = scaled.numel()
        assert abs(scaled.mean()) < 5 / count**0.5
        assert abs(scaled.square().mean() - 1) < 5 * (2 / count) ** 0.5
        assert abs(scaled.pow(4).mean() - 3) < 5 * (96 / count) ** 0.5
        assert 0.9 < bias.abs().max() * inputs**0.5 <= 1


def residual(x: Tensor, p: Iterator[Tensor], size: tuple[int, int]) -> Tensor:
    """Write a block out: to `size` from that of x, by the parameters that come next."""
    ratio = (size[0] > x.shape[2]) - (size[0] < x.shape[2])
    h = F.conv2d(x.clamp(min=0), next(p), next(p), padding=1).clamp(min=0)
    if ratio == 0:
        return x + F.conv2d(h, next(p), next(p), padding=1)
    if ratio < 0:
        last = F.conv2d(h, next(p), next(p), stride=2, padding=1)
        return last + F.conv2d(x, next(p), next(p), stride=2, padding=1)
    # A transposed convolution is the gradient of the convolution that comes down from `size`.
    outputs = []
    for y in (h, x):
        weight, bias = next(p), next(p)
        target = (len(y), weight.shape[1], *size)
        up = torch.nn.grad.conv2d_input(target, weight, y, stride=2, padding=1)
        outputs.append(up + bias[:, None, None])
    return outputs[0] + outputs[1]


@pytest.mark.parametrize(
    "sizes",
    [[(28, 28), (14, 14), (7, 7), (4, 4)], [(7, 6), (4, 3), (2, 2), (1, 1)]],
    ids=["28x28", "7x6"],
)
def test_resnet_is_the_net_it_says(sizes: list[tuple[int, int]], device: torch.device) -> None:
    """Two blocks a stage, the second of which changes the size; the decoder retraces the sizes."""
    (encoder, x, _), (decoder, z, _) = made("resnet[channels=2]", device, sizes[0])
    p = iter(encoder.parameters())
    h = F.conv2d(x.view(5, 1, *sizes[0]), next(p), next(p))
    for here, there in zip(sizes, sizes[1:], strict=False):
        h = residual(residual(h, p, here), p, there)
    assert h.shape == (5, 16, *sizes[-1])
    h = h.clamp(min=0).flatten(1) @ next(p).T + next(p)
    torch.testing.assert_close(encoder(x), h, rtol=1e-12, atol=1e-12)
    assert next(p, None) is None

    p = iter(decoder.parameters())
    h = (z @ next(p).T + next(p)).view(5, 16, *sizes[-1])
    for here, there in zip(sizes[:0:-1], sizes[-2::-1], strict=True):
        h = residual(residual(h, p, here), p, there)
    h = F.conv2d(h.clamp(min=0), next(p), next(p)).flatten(1)
    torch.testing.assert_close(decoder(z), h, rtol=1e-12, atol=1e-12)
    assert next(p, None) is None


def test_resnet_has_the_parameters_of_the_papers() -> None:
    """Counted by hand: a 3x3 convolution of m to n channels has 9 m n + n."""
    bodies: Bodies = NETS.build("resnet", (28, 28), 32)
    encoder, decoder = (sum(p.numel() for p in make().parameters()) for make in bodies)
    first = 1 * 16 + 16
    same = [2 * 2320, 2 * 9248, 2 * 36928, 2 * 147584]  # of 16, 32, 64, 128 channels
    down = [2320 + 2 * 4640, 9248 + 2 * 18496, 36928 + 2 * 73856]  # 16 to 32 to 64 to 128
    up = [147584 + 2 * 73792, 36928 + 2 * 18464, 9248 + 2 * 4624]  # 128 to 64 to 32 to 16
    assert encoder == first + sum(same[:3]) + sum(down) + (128 * 16 + 1) * 64
    assert decoder == (32 + 1) * 128 * 16 + sum(same[1:]) + sum(up) + 16 + 1
