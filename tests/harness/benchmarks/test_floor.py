"""The floor multiplies what a step multiplies, and counts it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.benchmarks import floor
from flowvae.models.vae import VAE, build
from flowvae.trial import Trial

CPU = torch.device("cpu")


def small(prior: str = "gauss", precision: str = "float32") -> VAE:
    description = {"prior": prior, "net": "mlp[hidden=5]", "precision": precision}
    return build(Trial(latent=3, dataset="mnist", **description), (2, 2))


def test_the_floor_counts_the_products_of_a_known_model() -> None:
    # encoder 4 -> 5 -> 6 and decoder 3 -> 5 -> 4; each layer's weights m n, B = 7 rows
    vae = small()
    assert [layer[:2] for layer in floor.linear_layers(vae)] == [(4, 5), (5, 6), (3, 5), (5, 4)]
    assert floor.training_flops(vae, 7) == 2 * 7 * (2 * 20 + 3 * 30 + 3 * 15 + 3 * 20)


def test_the_floor_counts_masked_layers_as_dense_ones() -> None:
    flow = "maf[transforms=2,hidden=10]"
    more = floor.training_flops(small(flow), 7) - floor.training_flops(small(), 7)
    assert more == 2 * 7 * 3 * 2 * (3 * 10 + 10 * 6)  # two numbers, shift and scale, a feature


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_floor_multiplies_what_it_counts(precision: str, members: int) -> None:
    vae = small("maf[transforms=1,hidden=5]", precision)
    shapes = floor.linear_layers(vae)
    products = floor._Products(shapes, 7, members, precision, CPU, backward=True)
    products()
    counted = 0
    for left, right, out in products.triples:
        counted += 2 * out.numel() * left.shape[-1]
        close = {"rtol": 1e-2, "atol": 0.1} if left.dtype == torch.bfloat16 else {}
        expected = (left.double() @ right.double()).to(out.dtype)
        torch.testing.assert_close(out, expected, **close or {"rtol": 1e-5, "atol": 1e-5})
    assert counted == members * floor.training_flops(vae, 7)
    lowered = sum(p[0].dtype == torch.bfloat16 for p in products.triples)
    bodies = sum(2 + layer.input_gradient for layer in shapes if layer.part != "prior")
    assert lowered == (bodies if precision == "bf16" else 0)


def test_the_floor_multiplies_what_autograd_multiplies() -> None:
    vae = small("maf[transforms=1,hidden=5]")
    x = torch.randint(2, (7, 4), dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        vae.elbo(x, torch.randn(7, 3)).elbo.mean().backward()
    assert floor.training_flops(vae, 7) == counter.get_total_flops()


def test_the_floors_calls_run_and_leave_the_model_alone() -> None:
    vae = small("maf[transforms=1,hidden=5]")
    before = nn.utils.parameters_to_vector(vae.parameters()).clone()
    floor.make_training_step(vae, 7, members=2, device=CPU)()
    floor.make_adam(vae, device=CPU)()
    floor.make_scoring_products(vae, floor.PRODUCT_ROWS["cpu"] + 1, precision="bf16", device=CPU)()
    assert (nn.utils.parameters_to_vector(vae.parameters()) == before).all()
    assert all(p.grad is None for p in vae.parameters())
