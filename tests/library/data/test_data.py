"""Data sets: the registry, and digits and MNIST against their sources' own arrays."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from flowvae.data import DATASETS, Dataset, Rule, data_dir, load_data
from flowvae.errors import InputError
from flowvae.models.vae import VAE
from flowvae.training.trainer import fit
from flowvae.trial import Trial

GREY, CLASSES = load_digits(return_X_y=True)  # (1797, 64), 0..16


def rows(*parts: NDArray[np.generic] | torch.Tensor) -> Counter[bytes]:
    """Count the rows of some arrays, in no order."""
    table = np.concatenate([np.asarray(part, dtype=np.uint8) for part in parts])
    return Counter(row.tobytes() for row in table)


def test_every_dataset_has_the_options_that_trials_rely_on() -> None:
    for name, entry in DATASETS.items():
        assert {"valid", "binarise"} <= set(entry.options), name


def test_datasets_are_listed_with_those_of_old_stores_first() -> None:
    assert list(DATASETS) == [
        "digits", "mnist", "fashion-mnist", "kmnist", "emnist-letters", "mnist-fixed", "omniglot",
        "caltech101-silhouettes", "file",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("digits", "digits[valid=237,binarise=threshold]"),
        ("mnist", "mnist[valid=10000,binarise=threshold]"),
    ],
)
def test_specs_that_trials_of_old_stores_hash(name: str, spec: str) -> None:
    assert DATASETS.resolve(name) == spec


@pytest.mark.parametrize("name", ["digits", "mnist", "omniglot"])
def test_grey_images_are_not_taken_as_fixed(name: str) -> None:
    with pytest.raises(InputError, match="expected one of threshold, stochastic"):
        load_data(f"{name}[binarise=fixed]")


@pytest.mark.parametrize("name", ["mnist-fixed", "caltech101-silhouettes"])
def test_published_splits_and_binarisations_stand(name: str, tmp_path: Path) -> None:
    published = DATASETS[name].options["valid"]
    with pytest.raises(InputError, match=f"own split, {published} validation images; got valid=5"):
        load_data(f"{name}[valid=5]", tmp_path)
    with pytest.raises(InputError, match="'threshold'.*expected one of fixed"):
        load_data(f"{name}[binarise=threshold]", tmp_path)


def test_rules_are_said_in_words(digits: Dataset) -> None:
    words = [replace(digits, binarise=rule).describe() for rule in get_args(Rule)]
    for text, part in zip(words, ["threshold at half", "stochastic", "fixed"], strict=True):
        assert f", {part}" in text


def test_digits_keep_every_image_and_threshold_at_half(digits: Dataset) -> None:
    assert (GREY == 8).any(), "no pixel lies at exactly half"
    assert rows(digits.train, digits.valid, digits.test) == rows(GREY / 16 >= 0.5)
    assert [len(part) for part in (digits.train, digits.valid, digits.test)] == [1200, 237, 360]
    assert digits.levels == 1
    assert {part.dtype for part in (digits.train, digits.valid, digits.test)} == {torch.uint8}


def test_digits_test_set_is_stratified_and_labelled(digits: Dataset) -> None:
    share = np.bincount(digits.labels, minlength=10) - 0.2 * np.bincount(CLASSES)
    assert len(digits.labels) == 360
    assert abs(share).max() < 1
    pairs = rows(np.column_stack([GREY >= 8, CLASSES]))
    assert rows(np.column_stack([digits.test, digits.labels])) <= pairs


def test_digits_content_is_pinned(digits: Dataset) -> None:
    """A scikit-learn that splits otherwise makes another data set; it must not go unseen."""
    assert digits.hash == "4299ef5228cc95f7"
    assert load_data("digits[binarise=stochastic]").hash == "09790b5417e28600"


def test_hash_follows_the_content(digits: Dataset) -> None:
    hashes = {load_data(f"digits[valid={n}]").hash for n in (0, 236, 237)}
    assert len(hashes) == 3
    assert digits.hash in hashes


@pytest.mark.parametrize("rule", ["threshold", "stochastic"])
def test_held_out_images_come_from_the_end_of_the_training_images(rule: str) -> None:
    none, some = (load_data(f"digits[valid={n},binarise={rule}]") for n in (0, 100))
    assert (len(none.train), len(none.valid)) == (1437, 0)
    assert torch.equal(some.train, none.train[:1337])
    assert torch.equal(some.test, none.test)
    if rule == "threshold":
        assert torch.equal(some.valid, none.train[1337:])


@pytest.mark.parametrize("valid", [1437, 5000])
def test_holding_out_everything_is_refused(valid: int) -> None:
    message = f"digits has 1437 training images: cannot hold out {valid} for validation"
    with pytest.raises(InputError, match=message):
        load_data(f"digits[valid={valid}]")


def test_stochastic_digits_train_on_intensities_and_test_on_one_draw(digits: Dataset) -> None:
    drawn, again = (load_data("digits[binarise=stochastic]") for _ in range(2))
    whole = load_data("digits[binarise=stochastic,valid=0]")
    assert drawn.levels == 16
    assert torch.equal(drawn.test, again.test)
    assert torch.equal(drawn.valid, again.valid)
    assert torch.equal((drawn.train >= 8).to(torch.uint8), digits.train)  # the same images
    # The intensities of the test images are what the training images leave over.
    left = rows(GREY) - rows(whole.train)
    grey = np.stack([np.frombuffer(row, np.uint8) for row in left.elements()]) / 16
    assert len(grey) == len(drawn.test) == 360
    assert_bernoulli(drawn.test.double().sum(dim=0).numpy(), grey)


def assert_bernoulli(total: NDArray[np.float64], p: NDArray[np.float64], draws: int = 1) -> None:
    """Assert that sums over N images and some draws fit the pixels' probabilities, (N, P)."""
    mean, variance = draws * p.sum(axis=0), draws * (p * (1 - p)).sum(axis=0)
    sure, common = variance == 0, variance > 5  # common enough for the normal approximation
    assert np.array_equal(total[sure], mean[sure])
    z = (total - mean)[common] / np.sqrt(variance[common])
    assert len(z) > 10
    assert abs(z).max() < 5
    assert abs((z**2).mean() - 1) < 6 * np.sqrt(2 / len(z))


def test_stochastic_training_draws_afresh_with_the_right_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An image that is used often is on as often as its intensity says, each pixel by itself."""
    data = load_data("digits[binarise=stochastic]")
    data = replace(data, train=data.train[:1].expand(50, -1), valid=data.valid[:0])
    met, elbo = [], VAE.elbo
    monkeypatch.setattr(VAE, "elbo", lambda vae, *a: met.append(a[0]) or elbo(vae, *a))
    recipe = {"latent": 1, "net": "mlp[hidden=4]", "epochs": 20, "dataset": data.spec}
    (fitted,) = fit([Trial(prior="gauss", **recipe)], data)
    assert fitted.status == "complete"
    draws = torch.stack(met).double()  # (20, 50, 64)
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    p = data.train[:1].double().numpy() / 16
    assert_bernoulli(draws.sum(dim=(0, 1)).numpy(), p, draws=1000)
    grey = (p[0] > 0.2) & (p[0] < 0.8)
    assert (draws[:, :, torch.from_numpy(grey)].std(dim=0) > 0).all()  # differs between epochs


def test_data_dir_is_flag_then_environment_then_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWVAE_DATA", "/from/environment")
    assert data_dir("/from/flag") == Path("/from/flag")
    assert data_dir() == Path("/from/environment")
    monkeypatch.delenv("FLOWVAE_DATA")
    assert data_dir() == Path("data")


def test_mnist_is_what_its_files_say(mnist: Dataset) -> None:
    raw = data_dir() / "MNIST" / "raw"
    grey = {
        part: np.frombuffer((raw / f"{part}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
        for part in ("train", "t10k")
    }
    labels = np.frombuffer((raw / "t10k-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    train = grey["train"].reshape(60_000, 784) / 255 >= 0.5
    assert mnist.shape == (28, 28)
    assert np.array_equal(mnist.train, train[:50_000])
    assert np.array_equal(mnist.valid, train[50_000:])
    assert np.array_equal(mnist.test, grey["t10k"].reshape(10_000, 784) / 255 >= 0.5)
    assert np.array_equal(mnist.labels, labels)
    assert mnist.hash == "09db0e44a174e0d7"
    assert mnist.describe() == (
        "mnist, 28x28, threshold at half: 50000 train, 10000 valid, 10000 test"
    )


def test_stochastic_mnist_tests_on_one_draw(mnist: Dataset) -> None:
    drawn = load_data("mnist[binarise=stochastic,valid=0]")
    raw = data_dir() / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    grey = np.frombuffer(raw.read_bytes(), np.uint8, offset=16).reshape(10_000, 784) / 255
    assert (drawn.levels, len(drawn.train), len(drawn.valid)) == (255, 60_000, 0)
    assert_bernoulli(drawn.test.double().sum(dim=0).numpy(), grey)


def test_digits_need_no_folder(tmp_path: Path, digits: Dataset) -> None:
    assert load_data("digits", tmp_path / "absent").hash == digits.hash
