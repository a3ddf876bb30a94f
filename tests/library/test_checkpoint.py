"""A computation that is ended anywhere and begun again gives the numbers of one never ended."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from support.small_priors import narrow

from flowvae import checkpoint as module
from flowvae.checkpoint import Checkpoint, CheckpointError, State
from flowvae.data import Dataset, load_data
from flowvae.evaluation.importance_weighting import Scores, evaluate
from flowvae.priors import PRIORS
from flowvae.training.trainer import Fitted, fit, fit_prior
from flowvae.trial import Evaluation, Trial

STOPS = 13
"""Questions whether to stop that are answered with no before one with yes."""


@pytest.fixture(scope="module")
def small() -> Dataset:
    data = load_data("digits")
    return replace(data, train=data.train[:200], valid=data.valid[:60], test=data.test[:230])


def make(prior: str = "maf[hidden=8]", **changes: Any) -> Trial:  # noqa: ANN401
    """Describe a small trial of five steps an epoch, the last one smaller."""
    return Trial(
        prior=prior, **{"latent": 3, "net": "mlp[hidden=12]", "epochs": 4, "batch": 48, **changes}
    )


def after(questions: int) -> Callable[[], str]:
    """Ask for a stop after so many questions."""
    asked = iter([""] * questions)
    return lambda: next(asked, "SIGTERM")


def again_and_again(
    path: Path, body: Callable[[Checkpoint], Any], every: float = 60.0, stops: int = STOPS
) -> tuple[Any, int]:
    """Start a computation anew after each stop, until it ends; count the stops."""
    for count in range(200):
        try:
            return body(Checkpoint(path, every, after(stops + count % 3))), count
        except KeyboardInterrupt:
            assert path.exists()
    raise AssertionError("it never ended")


def same(a: Fitted, b: Fitted) -> None:
    """Assert that two outcomes are the same to the bit."""
    assert (a.trial, a.status, a.reason, a.epoch) == (b.trial, b.status, b.reason, b.epoch)
    assert {k: np.array(v).tobytes() for k, v in a.history.items()} == {
        k: np.array(v).tobytes() for k, v in b.history.items()
    }
    for name, weight in b.vae.state_dict().items():
        assert torch.equal(a.vae.state_dict()[name].nan_to_num(), weight.nan_to_num()), name


RECIPES = [
    {},
    {"select": "best", "lr": 0.03},
    {"clip": 1.0, "schedule": "cosine", "prior_lr": 5e-3, "warmup": 2},
    {"patience": 1, "lr": 0.05, "epochs": 6},
    {"dataset": "digits[binarise=stochastic]"},
    {"precision": "float64"},
    {"lr": 1e30},
]


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]])
@pytest.mark.parametrize("changes", RECIPES, ids=str)
def test_a_fit_that_is_stopped_again_and_again_ends_as_one_never_stopped(
    changes: dict[str, Any], seeds: list[int], device: torch.device, small: Dataset, tmp_path: Path
) -> None:
    trials = [make(seed=seed, **changes) for seed in seeds]
    if "dataset" in changes:
        small = replace(load_data(changes["dataset"]), train=small.train * 255, levels=255)
    whole = fit(trials, small, device=device)
    told: list[int] = []

    def body(checkpoint: Checkpoint) -> list[Fitted]:
        told.clear()
        return fit(
            trials,
            small,
            device=device,
            checkpoint=checkpoint,
            on_epoch=lambda epoch, means: told.append(epoch),
        )

    parts, stops = again_and_again(tmp_path / "fit.safetensors", body, stops=3)
    assert stops >= 1
    for part, one in zip(parts, whole, strict=True):
        same(part, one)
    assert told == list(range(1, len(told) + 1))
    assert len(told) == max(len(one.history["train/elbo"]) for one in whole)


@pytest.mark.parametrize("prior", sorted(PRIORS))
def test_every_prior_goes_on_where_it_was(
    prior: str, small: Dataset, tmp_path: Path, device: torch.device
) -> None:
    trial = make(narrow(prior), epochs=2)
    (whole,) = fit([trial], small, device=device)
    parts, stops = again_and_again(
        tmp_path / "fit",
        lambda checkpoint: fit([trial], small, device=device, checkpoint=checkpoint),
        stops=4,
    )
    assert stops > 0
    same(parts[0], whole)


def test_a_prior_fitted_post_hoc_goes_on_where_it_was(
    small: Dataset, tmp_path: Path, device: torch.device
) -> None:
    trial = make(training="post-hoc")
    (base,) = fit([trial.base], small, device=device)
    (whole,) = fit_prior([trial], [base.vae], small, device=device)

    def body(checkpoint: Checkpoint) -> list[Fitted]:
        return fit_prior([trial], [base.vae], small, device=device, checkpoint=checkpoint)

    parts, _ = again_and_again(tmp_path / "fit", body)
    same(parts[0], whole)


def test_saving_in_passing_changes_no_number(
    small: Dataset, tmp_path: Path, device: torch.device
) -> None:
    (whole,) = fit([make()], small, device=device)
    (kept,) = fit(
        [make()], small, device=device, checkpoint=Checkpoint(tmp_path / "fit", every=0.0)
    )
    same(kept, whole)
    assert [path.name for path in tmp_path.iterdir()] == ["fit"]


def test_a_fit_that_is_done_is_not_done_again(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    checkpoint = Checkpoint(tmp_path / "fit")
    (whole,) = fit([make(select="best")], small, device=device, checkpoint=checkpoint)
    assert not (tmp_path / "fit").exists()  # there was no time to
    checkpoint.save()
    monkeypatch.setattr(
        "flowvae.training.optimiser_steps.Steps.take", None
    )  # no step can be taken
    (again,) = fit(
        [make(select="best")], small, device=device, checkpoint=Checkpoint(tmp_path / "fit")
    )
    same(again, whole)
    assert again.timing.train_seconds == whole.timing.train_seconds


def test_training_time_is_that_of_all_parts_without_the_savings(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(self: Checkpoint) -> None:
        import time

        time.sleep(0.3)
        save(self)

    save = Checkpoint.save
    monkeypatch.setattr(Checkpoint, "save", slow)
    parts, stops = again_and_again(
        tmp_path / "fit", lambda c: fit([make()], small, checkpoint=c), stops=1
    )
    assert stops > 5
    assert 0 < parts[0].timing.train_seconds < 0.3 * stops


# Scoring


@pytest.fixture(scope="module")
def model(small: Dataset, device: torch.device) -> Fitted:
    return fit([make()], small, device=device)[0]


def score(model: Fitted, data: Dataset, checkpoint: Checkpoint | None = None) -> Scores:
    evaluation = Evaluation(samples=130)
    device = next(model.vae.parameters()).device
    return evaluate(model.vae, data.test, evaluation, seed=0, device=device, checkpoint=checkpoint)


def same_scores(a: Scores, b: Scores) -> None:
    assert a.loglik.keys() == b.loglik.keys()
    for one, other in zip(
        (*vars(a).values(), *a.loglik.values()),
        (*vars(b).values(), *b.loglik.values()),
        strict=True,
    ):
        if not isinstance(one, dict):
            assert one.tobytes() == other.tobytes()


def test_scoring_goes_on_where_it_was(
    model: Fitted, small: Dataset, tmp_path: Path, device: torch.device
) -> None:
    scored: list[int] = []

    def body(checkpoint: Checkpoint) -> Scores:
        def tell(done: int, total: int) -> None:
            assert total == 230
            scored.append(done)

        evaluation = Evaluation(samples=130)
        return evaluate(
            model.vae,
            small.test,
            evaluation,
            seed=0,
            device=device,
            on_chunk=tell,
            checkpoint=checkpoint,
        )

    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        body(Checkpoint(tmp_path / "scores", 60.0, lambda: "SIGTERM"))  # before there is any
    parts, stops = again_and_again(tmp_path / "scores", body, stops=24)  # a tile has fewer
    assert stops > 0
    same_scores(parts, score(model, small))
    assert scored == [100, 200, 230]  # each tile once


def test_scores_of_another_model_are_not_taken_up(
    model: Fitted, small: Dataset, tmp_path: Path, device: torch.device
) -> None:
    (other,) = fit([make(seed=1)], small, device=device)
    with pytest.raises(KeyboardInterrupt):
        score(other, small, Checkpoint(tmp_path / "scores", 60.0, after(2)))
    same_scores(score(model, small, Checkpoint(tmp_path / "scores")), score(model, small))


# The file


def half(small: Dataset, path: Path, **changes: Any) -> Trial:  # noqa: ANN401
    """Leave the checkpoint of a fit that was stopped."""
    trial = make(**changes)
    with pytest.raises(KeyboardInterrupt):
        fit([trial], small, checkpoint=Checkpoint(path, 60.0, after(7)))
    return trial


def test_a_checkpoint_of_something_else_is_refused(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fit"
    half(small, path)
    with pytest.raises(CheckpointError, match="is not a checkpoint of maf.*: different trials"):
        fit([make(seed=3)], small, checkpoint=Checkpoint(path))
    with pytest.raises(CheckpointError, match="different data"):
        fit([make()], replace(small, hash="other"), checkpoint=Checkpoint(path))
    with monkeypatch.context() as patch:
        patch.setattr("flowvae.training.trainer.code", lambda: "another")
        with pytest.raises(CheckpointError, match="different code"):
            fit([make()], small, checkpoint=Checkpoint(path))
    with monkeypatch.context() as patch:
        patch.setattr("flowvae.training.trainer.VERSION", "99")
        with pytest.raises(CheckpointError, match="different torch"):
            fit([make()], small, checkpoint=Checkpoint(path))


def test_a_checkpoint_of_another_kind_of_device_is_refused(
    small: Dataset, tmp_path: Path, cuda: torch.device
) -> None:
    trial = half(small, tmp_path / "fit")
    with pytest.raises(CheckpointError, match="different device"):
        fit([trial], small, device=cuda, checkpoint=Checkpoint(tmp_path / "fit"))


def test_a_prior_fitted_to_another_base_begins_anew(small: Dataset, tmp_path: Path) -> None:
    trial, path = make(training="post-hoc"), tmp_path / "fit"
    first, second = (fit([trial.base.but(epochs=n)], small)[0] for n in (1, 2))
    with pytest.raises(KeyboardInterrupt):
        fit_prior([trial], [first.vae], small, checkpoint=Checkpoint(path, 60.0, after(7)))
    with pytest.raises(CheckpointError, match="different frozen weights"):
        fit_prior([trial], [second.vae], small, checkpoint=Checkpoint(path))
    fit_prior([trial], [first.vae], small, checkpoint=Checkpoint(path))


def test_another_kind_of_device_begins_anew_and_says_so(
    small: Dataset, tmp_path: Path, cuda: torch.device
) -> None:
    from bench.execution.scoring import begin_at  # it imports MLflow, which takes seconds

    trial, checkpoint = half(small, tmp_path / "fit"), Checkpoint(tmp_path / "fit")

    def body() -> list[Fitted]:
        return fit([trial], small, device=cuda, checkpoint=checkpoint)

    with pytest.warns(RuntimeWarning, match="different device: starting over"):
        (found,) = begin_at(checkpoint, body)
    same(found, fit([trial], small, device=cuda)[0])


def test_other_conditions_are_told(small: Dataset, tmp_path: Path) -> None:
    trial = half(small, tmp_path / "fit")
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        said = f"resumes with {threads + 1} threads, after {threads} before"
        with pytest.warns(RuntimeWarning, match=said):
            (fitted,) = fit([trial], small, checkpoint=Checkpoint(tmp_path / "fit"))
        assert fitted.timing.threads == (threads, threads + 1)
    finally:
        torch.set_num_threads(threads)


def mangled(whole: bytes) -> list[bytes]:
    """Spoil a file in ways that a disk, a person or a stranger may."""
    spoilt = [b"", b"{}", whole[:7], whole[: len(whole) // 2], whole[:-1], whole[::-1]]
    spoilt += [
        b"\xff" * 8 + whole[8:],
        whole.replace(b"flowvae checkpoint 1", b"flowvae checkpoint 9"),
    ]
    spoilt += [whole.replace(b"model/", b"mudel/"), whole.replace(b"seconds", b"sekonds")]
    spoilt += [whole.replace(b"progress", b"prugress"), whole.replace(b"stream/", b"straam/")]
    spoilt += [
        whole.replace(b"history", b"histury"),
        whole.replace(b"adam exp_avg/", b"adam exp_avx/"),
    ]
    return spoilt


def test_a_spoilt_file_is_no_checkpoint(small: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "fit"
    trial = half(small, path)
    whole = path.read_bytes()
    for spoilt in mangled(whole):
        assert spoilt != whole
        path.write_bytes(spoilt)
        with pytest.raises(CheckpointError, match="fit is not a checkpoint"):
            fit([trial], small, checkpoint=Checkpoint(path))
    safetensors.torch.save_file({"a": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="expected the format"):
        fit([trial], small, checkpoint=Checkpoint(path))
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError):
        fit([trial], small, checkpoint=Checkpoint(path))


def test_a_folder_is_made_and_a_removed_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "a" / "b" / "fit", every=0.0)
    assert checkpoint.due()
    checkpoint.keep("x", State({}, {"far": float("inf"), "n": 1}))
    again = Checkpoint(checkpoint.path)
    assert again.get("x").facts == {"far": float("inf"), "n": 1}
    assert again.get("y") is None
    (checkpoint.path.parent / "fit.123.tmp").touch()  # of a process that was killed
    again.remove()
    assert not list(checkpoint.path.parent.iterdir())
    assert again.get("x") is None


@pytest.mark.parametrize("where", ["save_file", "replace"])
def test_what_cannot_be_written_leaves_the_last_one_and_is_told(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(tmp_path / "fit", every=0.0)
    checkpoint.keep("x", State({"a": torch.zeros(3)}, {}))
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fails(*_: object, **__: object) -> None:
        raise full

    place = module.os if where == "replace" else module.safetensors.torch
    monkeypatch.setattr(place, where, fails)
    with pytest.warns(RuntimeWarning, match="fit \\(No space left on device\\): work from now on"):
        checkpoint.keep("x", State({"a": torch.ones(3)}, {}))
    assert not checkpoint.pending  # a later saving would write what has changed since
    assert [path.name for path in tmp_path.iterdir()] == ["fit"]
    assert Checkpoint(tmp_path / "fit").get("x").tensors["a"].tolist() == [0, 0, 0]
    checkpoint.stop = lambda: "SIGHUP"
    assert checkpoint.due()
    with pytest.warns(RuntimeWarning), pytest.raises(KeyboardInterrupt, match="SIGHUP"):
        checkpoint.keep("x", State({}, {}))


def test_nothing_is_saved_before_its_time(tmp_path: Path) -> None:
    assert not Checkpoint(tmp_path / "fit").due()
    assert Checkpoint(tmp_path / "fit", every=0.0).due()
