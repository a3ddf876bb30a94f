"""Saved models: to the bit there and back, and every other folder is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from flowvae.data import Dataset
from flowvae.errors import InputError
from flowvae.evaluation.importance_weighting import evaluate
from flowvae.models.saved_model import load, save
from flowvae.models.vae import VAE, build
from flowvae.training.trainer import fit
from flowvae.trial import Evaluation, Trial


def make(data: Dataset, prior: str = "maf[hidden=8]", precision: str = "float32") -> tuple:
    trial = Trial(prior=prior, latent=2, net="mlp[hidden=16]", precision=precision, epochs=1)
    return fit([trial], data)[0].vae, trial


@pytest.fixture
def folder(tmp_path: Path, small: Dataset) -> Path:
    trial = Trial(prior="maf[hidden=8]", latent=2, net="mlp[hidden=16]")
    return save(build(trial, small.shape), trial, tmp_path / "deep" / "model")


def test_masks_that_were_saved_as_booleans_are_read(folder: Path) -> None:
    """As zuko keeps them, and as earlier versions saved them."""
    path = folder / "weights.safetensors"
    weights = safetensors.torch.load_file(path)
    masks = {name for name in weights if name.endswith("mask")}
    assert masks
    old = {k: w.bool() if k in masks else w for k, w in weights.items()}
    vae, _ = load(folder)
    safetensors.torch.save_file(old, path)
    again, _ = load(folder)
    z = torch.randn(5, 2)
    assert torch.equal(again.prior().log_prob(z), vae.prior().log_prob(z))


@pytest.mark.parametrize("precision", ["float32", "bf16", "float64"])
def test_model_comes_back_to_the_bit(
    prior: str, precision: str, small: Dataset, tmp_path: Path
) -> None:
    vae, trial = make(small, prior, precision)
    again, described = load(save(vae, trial, tmp_path))
    assert described == trial
    assert {k: v.dtype for k, v in again.state_dict().items()} == {
        k: v.dtype for k, v in vae.state_dict().items()
    }
    assert torch.equal(again.sample(4, seed=3), vae.sample(4, seed=3))
    x, noise = small.test[:9], torch.randn(9, 2).to(next(vae.parameters()).dtype)
    assert torch.equal(again.elbo(x, noise).elbo, vae.elbo(x, noise).elbo)


def test_model_that_was_scored_in_another_precision_still_works(
    small: Dataset, tmp_path: Path
) -> None:
    vae, trial = make(small)
    evaluate(vae, small.test[:5], Evaluation(samples=5, precision="float64"), seed=0)
    again, _ = load(save(vae, trial, tmp_path))
    means = (model.encode(small.test[:5]).mean for model in (again, vae))
    torch.testing.assert_close(*means, check_dtype=False)


@pytest.mark.parametrize("name", ["weights.safetensors", "trial.json", "image.json"])
def test_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"not a saved model: .*{name}"):
        load(folder)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a saved model"):
        load(tmp_path / "absent")


def test_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not a saved model"):
        load(tmp_path / "file")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff" * 100),
        lambda path: path.write_text("no weights"),
    ],
    ids=["truncated", "empty", "binary", "text"],
)
@pytest.mark.parametrize("name", ["weights.safetensors", "trial.json", "image.json"])
def test_damaged_file_is_refused(name: str, damage: Callable[[Path], None], folder: Path) -> None:
    damage(folder / name)
    with pytest.raises(InputError, match=r"saved model|not a trial"):
        load(folder)


def edit(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "trial.json").read_text())
    (folder / "trial.json").write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent": 3}, "does not fit its trial.json"),
        ({"net": "mlp[hidden=17]"}, "does not fit its trial.json"),
        ({"prior": "gauss"}, "does not fit its trial.json"),
        ({"prior": "nsf"}, "does not fit its trial.json"),
        ({"prior": "gaus"}, "unknown prior 'gaus'"),
        ({"latents": 3}, "not a trial"),
        ({"latent": 10**14}, "weights.safetensors|latent"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    changes: dict[str, object], message: str, folder: Path
) -> None:
    edit(folder, **changes)
    with pytest.raises(InputError, match=message):
        load(folder)


@pytest.mark.parametrize(
    "content",
    [
        "[8, 8]",
        "{}",
        '{"shape": 64}',
        '{"shape": [8]}',
        '{"shape": [8, "8"]}',
        '{"shape": [8, 8.0]}',
        '{"shape": [8, true]}',
        '{"shape": [0, 8]}',
        '{"shape": [-8, -8]}',
        '{"shape": [8, 9]}',
        '{"shape": [1000000000, 1000000000]}',
    ],
)
def test_bad_image_shape_is_refused(content: str, folder: Path) -> None:
    (folder / "image.json").write_text(content)
    with pytest.raises(InputError):
        load(folder)


class _Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["weights.safetensors", "trial.json", "image.json"])
@pytest.mark.parametrize("dump", [pickle.dump, torch.save], ids=["pickle", "torch"])
def test_pickle_is_never_executed(name: str, dump: Callable, folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    with (folder / name).open("wb") as file:
        dump(_Bomb(marker), file)
    with pytest.raises(InputError):
        load(folder)
    assert not marker.exists()
    content = (folder / name).read_bytes()  # the bomb itself works
    if dump is pickle.dump:
        pickle.loads(content)
        assert marker.exists()


def test_loading_builds_without_images(folder: Path) -> None:
    vae, _ = load(folder)
    assert isinstance(vae, VAE)
    assert not vae.training
