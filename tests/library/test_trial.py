"""Trials: what their ids depend on, what is refused, what JSON keeps."""

from __future__ import annotations

import hashlib
import json
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
from support.trial_fields import OTHER

from flowvae import trial as module
from flowvae.errors import InputError
from flowvae.trial import Evaluation, Trial, registries


def test_id_changes_with_every_field() -> None:
    assert set(OTHER) == {field.name for field in fields(Trial)}
    base = Trial(prior="maf")
    trials = [base, *(base.but(**{name: value}) for name, value in OTHER.items())]
    assert len({trial.id for trial in trials}) == 1 + len(OTHER)


@pytest.mark.parametrize(
    ("kind", "spec", "other"),
    [
        (kind, f"{name}[{option}={value}]", name)
        for kind, name, option, value in [
            ("prior", "maf", "transforms", "2"),
            ("prior", "nsf", "bound", "5.5"),
            ("prior", "nsf", "affine", "true"),
            ("dataset", "digits", "binarise", "stochastic"),
            ("net", "mlp", "hidden", "1024"),
        ]
    ],
)
def test_id_changes_with_an_option(kind: str, spec: str, other: str) -> None:
    base = Trial(prior="gauss")
    assert base.but(**{kind: spec}).id != base.but(**{kind: other}).id


@pytest.mark.parametrize(
    "same",
    [
        {"prior": "nsf[bins=8]"},
        {"prior": " nsf [ bound = 5.0 , bins = 8 ] "},
        {"prior": "nsf[bound=5,hidden=256x256,transforms=3]"},
        {"latent": "16", "lr": "1e-3", "clip": "none"},
        {"lr": 0.001, "batch": 256.0},
        {"dataset": "digits[valid=237]", "net": "mlp[hidden=1024x1024]"},
        {"select": "last", "precision": "float32", "training": "joint"},
    ],
)
def test_id_does_not_depend_on_how_it_was_typed(same: dict[str, Any]) -> None:
    trial = Trial(**{"prior": "nsf", **same})
    assert trial == Trial(prior="nsf")
    assert trial.id == Trial(prior="nsf").id


def test_id_is_the_hash_of_the_canonical_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pins the form: ids stored years ago on another machine must still be recognised."""
    monkeypatch.setattr(module, "FIT_VERSION", 1)
    trial = Trial(prior="gauss", latent=16, seed=0, epochs=64, batch=256, lr=1e-3, clip=2)
    canonical = (
        '{"batch":256,"clip":2.0,"dataset":"digits[valid=237,binarise=threshold]","epochs":64,'
        '"fit":1,"latent":16,"lr":0.001,"net":"mlp[hidden=1024x1024]","precision":"float32",'
        '"prior":"gauss","seed":0,"select":"last","versions":{"dataset":1,"net":1,"prior":1}}'
    )
    assert trial.id == hashlib.sha256(canonical.encode()).hexdigest()[:12]


def test_id_changes_with_the_version_of_trainer_and_builders(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial = Trial(prior="gauss")
    ids = {trial.id}
    with monkeypatch.context() as patch:
        patch.setattr(module, "FIT_VERSION", module.FIT_VERSION + 1)
        ids.add(trial.id)
    for kind, name in [("prior", "gauss"), ("dataset", "digits"), ("net", "mlp")]:
        entries = registries()[kind]._entries
        with monkeypatch.context() as patch:
            patch.setitem(entries, name, replace(entries[name], version=99))
            ids.add(trial.id)
    assert len(ids) == 5


def test_base_of_a_post_hoc_trial_differs_in_the_prior_alone() -> None:
    trial = Trial(prior="maf[transforms=2]", seed=3, epochs=5, training="post-hoc")
    assert trial.base == Trial(prior="gauss", seed=3, epochs=5)
    assert (trial.arm, trial.name) == (
        "maf[transforms=2] post-hoc",
        "maf[transforms=2]-post-hoc-z16-s3",
    )
    assert (trial.base.base, trial.base.arm) == (None, "gauss")
    with pytest.raises(InputError, match="'gauss' has nothing to fit post hoc"):
        Trial(prior="gauss", training="post-hoc")


def test_id_of_a_post_hoc_trial_changes_with_its_base(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(prior="maf", training="post-hoc")
    before, joint = trial.id, trial.but(training="joint").id
    entries = registries()["prior"]._entries
    monkeypatch.setitem(entries, "gauss", replace(entries["gauss"], version=99))
    assert trial.id != before
    assert trial.but(training="joint").id == joint


def test_trial_is_resolved_and_frozen() -> None:
    trial = Trial(prior="maf[hidden=8]")
    assert trial.prior == "maf[transforms=3,hidden=8,randperm=false]"
    assert trial.labels == {"prior": "maf[hidden=8]", "dataset": "digits", "net": "mlp"}
    assert trial.but(latent=2, seed=3).name == "maf[hidden=8]-z2-s3"
    with pytest.raises(FrozenInstanceError):
        trial.lr = 1.0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"prior": "gaus"}, "unknown prior 'gaus'.*did you mean 'gauss'"),
        ({"prior": "maf[transform=3]"}, "'transform'.*did you mean 'transforms'"),
        ({"latent": 0}, "bad latent '0': expected a whole number, at least 1"),
        ({"latent": "0"}, "bad latent '0': expected a whole number, at least 1"),
        ({"latent": "x"}, "bad latent 'x': expected a whole number, at least 1"),
        ({"latent": 2.5}, "bad latent '2.5': expected a whole number, at least 1"),
        ({"latent": True}, "bad latent 'true': expected a whole number, at least 1"),
        ({"seed": -1}, "bad seed '-1': expected a whole number, at least 0"),
        ({"dataset": "minst"}, "unknown dataset 'minst'.*did you mean 'mnist'"),
        ({"net": "cnn"}, "unknown net 'cnn'"),
        ({"epochs": 0}, "bad epochs '0'"),
        ({"batch": None}, "bad batch 'none'"),
        ({"lr": 0}, "bad lr '0': expected a number, above 0"),
        ({"lr": float("nan")}, "bad lr 'nan': expected a number, above 0"),
        ({"clip": -1}, "bad clip '-1': expected a number, above 0"),
        ({"precision": "float16"}, "bad precision 'float16': expected one of float32, tf32, bf16"),
        ({"select": "first"}, "bad select 'first': expected one of last, best"),
        (
            {"select": "best", "dataset": "digits[valid=0]"},
            "select 'best' needs validation images, and there are none",
        ),
    ],
)
def test_bad_field_is_one_clear_error(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Trial(**{"prior": "gauss", **bad})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{}, {**OTHER, "lr": 0.1 + 0.2}])
def test_json_keeps_the_trial(changes: dict[str, Any]) -> None:
    trial = Trial(**{"prior": "maf[hidden=8]", **changes})
    text = trial.to_json()
    assert Trial.from_json(text) == trial
    assert json.loads(text)["id"] == trial.id


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a trial"),
        ("{", "not a trial"),
        ("[]", "not a trial"),
        ('"gauss"', "not a trial"),
        ("null", "not a trial"),
        ("{}", "not a trial.*'prior'"),
        ('{"prior": 3}', "bad prior 3"),
        ('{"prior": "gauss", "latents": 2}', "not a trial.*'latents'.*latent, seed"),
        ('{"prior": "gaus"}', "unknown prior 'gaus'"),
        ('{"prior": "gauss", "latent": [2]}', "bad latent"),
        ('{"prior": "gauss", "lr": NaN}', "bad lr 'nan'"),
        (100_000 * "[", "not a trial"),
    ],
)
def test_json_of_something_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Trial.from_json(text)


@pytest.mark.parametrize(
    ("samples", "ladder"),
    [
        (1, (1,)),
        (7, (1, 7)),
        (10, (1, 10)),
        (11, (1, 10, 11)),
        (1000, (1, 10, 100, 1000)),
        (5000, (1, 10, 100, 1000, 5000)),
    ],
)
def test_ladder_ends_at_all_samples(samples: int, ladder: tuple[int, ...]) -> None:
    assert Evaluation(samples=samples, estimator="encoder").ladder == ladder
    assert Evaluation(samples=samples).ladder == (samples,)  # a mixture's draws are not nested


def test_evaluation_id_changes_with_every_field() -> None:
    other = {"samples": 5000, "estimator": "encoder", "split": "valid"}
    other |= {"precision": "bf16", "images": 9}
    assert set(other) == {field.name for field in fields(Evaluation)}
    ids = {Evaluation(**{name: value}).id for name, value in other.items()}
    assert len(ids | {Evaluation().id}) == 6
    assert Evaluation(samples="1000").id == Evaluation().id


def test_evaluations_by_the_encoder_keep_their_ids() -> None:
    ids = [Evaluation(estimator="encoder", **k).id for k in ({"samples": 77}, {"images": 5})]
    assert ids == ["003679361823", "cb64b1e8295f"]  # of version 06135ba, which had no other


@pytest.mark.parametrize(
    "bad", [{"samples": 0}, {"split": "train"}, {"precision": "half"}, {"estimator": "best"}]
)
def test_bad_evaluation_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"bad {next(iter(bad))} "):
        Evaluation(**bad)
