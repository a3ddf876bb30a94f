"""Steps: what a graph would record, and that replaying it is taking the step."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flowvae.models.vae import VAE, build
from flowvae.numerics.precision import matrix_products
from flowvae.numerics.streams import generator, pinned
from flowvae.training.optimiser_steps import EAGER_STEPS, Epoch, Recipe, Steps
from flowvae.training.stack import Stack, stackable
from flowvae.trial import Trial

CPU = torch.device("cpu")
COUNT, BATCH = 40, 16
SYNCHRONISING = {  # they wait for the device, or copy to it: a CUDA graph takes neither
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::is_nonzero",
    "aten::lift_fresh",
    "aten::unique",
    "aten::_unique2",
}


def trials(prior: str, size: int = 1, **changes: Any) -> list[Trial]:  # noqa: ANN401
    trial = Trial(
        prior=prior, latent=3, net="mlp[hidden=8]", dataset="digits", precision="float64"
    ).but(**changes)
    return [trial.but(seed=seed) for seed in range(size)]


def prepare(
    stack: list[Trial],
    device: torch.device = CPU,
    clip: float | None = None,
    *,
    grey: bool = False,
) -> tuple[Steps, list[Epoch]]:
    stream = generator(0, "test")
    images = torch.randint(0, 17 if grey else 2, (100, 64), generator=stream, dtype=torch.uint8)
    models = [build(trial, (8, 8), images, 16 if grey else 1).to(device) for trial in stack]
    proposals = Stack(models).draws
    dtype = next(models[0].parameters()).dtype
    draws = [
        Epoch(
            torch.randperm(100, generator=stream)[:COUNT],
            torch.randn(COUNT, 3, generator=stream, dtype=dtype),
            torch.randint(0, 16, (COUNT, 64), generator=stream).to(torch.uint8) if grey else None,
            torch.randn(COUNT, proposals, 3, generator=stream, dtype=dtype) if proposals else None,
        )
        for _ in stack
    ]
    return Steps(Stack(models), images.to(device), Recipe(lr=1e-2, clip=clip)), draws


def launch_one_by_one(steps: Steps) -> None:
    """Let no graph be recorded."""
    steps._graphs = dict.fromkeys((BATCH, COUNT % BATCH))


class Operations(TorchDispatchMode):
    """Notes the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        self.names.add(func.name().split(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("size", [1, 2])
def test_a_step_waits_for_nothing(
    prior: str,
    size: int,
    grey: bool,  # noqa: FBT001
    device: torch.device,
) -> None:
    stack = trials(prior, size)
    if size > 1 and not stackable(stack[0]):
        pytest.skip("it trains one by one")
    steps, draws = prepare(stack, device, clip=1.0, grey=grey)
    steps.load(draws)
    steps.take(BATCH)  # Adam's state is made in the first step, which no graph records
    with Operations() as seen:
        steps.take(BATCH)
    assert {"aten::addmm", "aten::bmm"} & seen.names
    assert "aten::_fused_adam_" in seen.names
    if prior.startswith("bpf"):  # zuko makes it a number on the host: launched one by one
        assert SYNCHRONISING & seen.names == {"aten::lift_fresh"}
    else:
        assert not SYNCHRONISING & seen.names


def test_what_waits_is_seen() -> None:
    with Operations() as seen:
        float(torch.ones(()))
        torch.tensor([1.0])
    assert {"aten::_local_scalar_dense", "aten::lift_fresh"} <= SYNCHRONISING & seen.names


@pytest.mark.parametrize("grey", [False, True])
def test_batches_are_the_epochs_images_and_noise_in_order(
    grey: bool,  # noqa: FBT001
    device: torch.device,
) -> None:
    steps, draws = prepare(trials("gauss", 2), device, grey=grey)
    launch_one_by_one(steps)
    met: list[tuple[Tensor, Tensor]] = []
    take = steps.batch

    def spy(count: int) -> tuple[Tensor, Tensor]:
        met.append(take(count))
        return met[-1]

    steps.batch = spy  # type: ignore[method-assign]
    for _ in range(2):  # an epoch begins anew
        met.clear()
        steps.epoch(draws, BATCH)
        assert [x.shape[1] for x, _ in met] == [16, 16, 8]
        for s, member in enumerate(draws):
            x = steps.images.cpu()[member.order]
            expected = x if member.grain is None else x > member.grain
            assert torch.equal(torch.cat([x[s] for x, _ in met]).cpu(), expected)
            assert torch.equal(torch.cat([n[s] for _, n in met]).cpu(), member.noise)


def weights(steps: Steps) -> list[Tensor]:
    return [p.detach().cpu().clone() for p in steps.stack.state.values()]


class Recorded:
    """What stands in for a CUDA graph: the calls that ran while it was recorded."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for call in self.calls:
            call()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """Records on a CPU: the order of eager steps, recording and replays, without the device."""
    graphs: list[Recorded] = []

    def new() -> Recorded:
        graphs.append(Recorded())
        return graphs[-1]

    @contextmanager
    def recording(graph: Recorded, **_: object) -> Iterator[None]:
        step = Steps._step

        def note(steps: Steps, count: int) -> None:
            graph.calls.append(lambda: step(steps, count))

        with monkeypatch.context() as patch:
            patch.setattr(Steps, "_step", note)
            yield

    @contextmanager
    def nothing(self: Steps) -> Iterator[None]:
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", new)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(Steps, "aside", nothing)
    return graphs


def test_each_batch_size_is_recorded_once_after_eager_steps(recorder: list[Recorded]) -> None:
    plain, draws = prepare(trials("maf[hidden=8]"))
    graphed, _ = prepare(trials("maf[hidden=8]"))
    graphed._stream = object()  # type: ignore[assignment]
    epochs = 5
    for _ in range(epochs):
        sums = plain.epoch(draws, BATCH).clone()
        assert torch.equal(graphed.epoch(draws, BATCH), sums)
    for a, b in zip(weights(plain), weights(graphed), strict=True):
        assert torch.equal(a, b)
    assert [len(graph.calls) for graph in recorder] == [1, 1]
    assert [graph.replays for graph in recorder] == [
        2 * epochs - EAGER_STEPS,
        epochs - EAGER_STEPS,
    ]


def test_a_step_that_cannot_be_recorded_is_taken_with_a_warning(
    recorder: list[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def refusing(graph: Recorded, **_: object) -> Iterator[None]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refusing)
    plain, draws = prepare(trials("gauss"))
    graphed, _ = prepare(trials("gauss"))
    graphed._stream = object()  # type: ignore[assignment]
    with pytest.warns(
        RuntimeWarning, match=r"slower \(operation not permitted when .*capturing\)"
    ):
        graphed.epoch(draws, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once
        graphed.epoch(draws, 4)
    for _ in range(2):
        plain.epoch(draws, 4)
    for a, b in zip(weights(plain), weights(graphed), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("precision", ["float64", "float32", "tf32", "bf16"])
@pytest.mark.parametrize("size", [1, 3])
def test_a_replayed_step_is_the_eager_one(
    prior: str,
    size: int,
    precision: str,
    grey: bool,  # noqa: FBT001
    cuda: torch.device,
) -> None:
    """Recorded while other threads pin memory, as those that draw the next epoch do."""
    stack = trials(prior, size, precision=precision)
    if size > 1 and not stackable(stack[0]):
        pytest.skip("it trains one by one")
    if prior.startswith("bpf"):
        pytest.skip("zuko's Bernstein polynomials cannot be recorded")
    tolerance = 1e-9 if precision == "float64" else 1e-3
    done = threading.Event()

    def pin() -> None:
        while not done.is_set():
            torch.ones(1_000_000).pin_memory()

    with (
        warnings.catch_warnings(),
        matrix_products(precision, cuda),
        ThreadPoolExecutor(1) as pool,
    ):
        warnings.simplefilter("error")
        graphed, draws = prepare(stack, cuda, clip=1.0, grey=grey)
        eager, _ = prepare(stack, cuda, clip=1.0, grey=grey)
        launch_one_by_one(eager)
        pinning = pool.submit(pin)
        try:
            for _ in range(5):
                sums = [steps.epoch(draws, BATCH).cpu() for steps in (graphed, eager)]
                torch.testing.assert_close(*sums, rtol=tolerance, atol=0)
        finally:
            done.set()
        pinning.result()
    assert all(graphed._graphs.values())
    for a, b in zip(weights(graphed), weights(eager), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Let torch refuse whatever makes the host wait for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("size", [1, 3])
def test_an_epoch_waits_for_nothing(
    prior: str,
    size: int,
    grey: bool,  # noqa: FBT001
    cuda: torch.device,
) -> None:
    stack = trials(prior, size, precision="float32")
    if size > 1 and not stackable(stack[0]):
        pytest.skip("it trains one by one")
    if prior.startswith("bpf"):
        pytest.skip("zuko's Bernstein polynomials cannot be recorded, and wait")
    steps, draws = prepare(stack, cuda, clip=1.0, grey=grey)
    draws = [member.map(partial(pinned, device=cuda)) for member in draws]
    while not (len(steps._graphs) == 2 and all(steps._graphs.values())):
        assert steps._taken[COUNT % BATCH] <= EAGER_STEPS, "no graph was recorded"
        steps.epoch(draws, BATCH)
    before = weights(steps)
    with no_waiting():
        steps.epoch(draws, BATCH)
    assert not all(torch.equal(a, b) for a, b in zip(before, weights(steps), strict=True))


def test_what_waits_for_the_device_is_refused(cuda: torch.device) -> None:
    with no_waiting(), pytest.raises(RuntimeError, match="synchronizing"):
        torch.ones((), device=cuda).item()


def test_a_model_alone_is_left_in_its_module(device: torch.device) -> None:
    steps, draws = prepare(trials("gauss"), device)
    before = weights(steps)
    steps.epoch(draws, BATCH)
    (vae,) = steps.stack.models
    assert isinstance(vae, VAE)
    for a, b, c in zip(before, vae.parameters(), weights(steps), strict=True):
        assert not torch.equal(a, b.cpu())
        assert torch.equal(b.cpu(), c)
