"""Saved models from anybody: a model or a line of refusal, whatever is in the three files."""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.malformed import damaged, examples, refusal
from support.small_priors import narrow
from torch import Tensor

from flowvae.errors import InputError
from flowvae.models.saved_model import load, save
from flowvae.models.vae import VAE, build
from flowvae.numerics.size_limits import Room
from flowvae.priors import PRIORS
from flowvae.trial import Trial

NAMES = ("weights.safetensors", "trial.json", "image.json")
SPECS = [
    "gauss",
    "maf[hidden=4]",
    "nsf[hidden=4,bins=4]",
    "vamp[components=3]",
    "gmm[components=2]",
]
HUGE = [10**6, 10**9, 2**31, 2**63 - 1]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The files of small models, by prior."""
    found = {}
    for spec in SPECS:
        trial = Trial(prior=spec, latent=2, net="mlp[hidden=3]")
        folder = save(build(trial, (2, 2)), trial, tmp_path_factory.mktemp("model"))
        found[spec] = {name: (folder / name).read_bytes() for name in NAMES}
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("read")


def check(folder: Path, files: dict[str, bytes]) -> str:
    """Load a folder of these files; return what is said of it, nothing of a sound model."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    loaded: list[tuple[VAE, Trial]] = []
    said = refusal(lambda: loaded.append(load(folder)))
    for vae, trial in loaded:
        assert isinstance(vae, VAE)
        assert all(p.isfinite().all() for p in vae.parameters())
        assert vae.latent == trial.latent
    assert said is None or str(folder) in said
    assert sorted(os.listdir(folder)) == sorted(NAMES)
    return said or ""


@given(data=st.data())
@examples(150)
def test_damaged_files(data: st.DataObject, models: dict, folder: Path) -> None:
    files = dict(models[data.draw(st.sampled_from(SPECS))])
    for name in data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=2)):
        files[name] = data.draw(damaged(files[name]))
    check(folder, files)


def header(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Split the bytes of a safetensors file into its header and its numbers."""
    (size,) = struct.unpack_from("<Q", content)
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def joined(described: dict[str, Any], numbers: bytes) -> bytes:
    text = json.dumps(described).encode()
    return struct.pack("<Q", len(text)) + text + numbers


@given(data=st.data())
@examples(150)
def test_headers_of_weights(data: st.DataObject, models: dict, folder: Path) -> None:
    files = dict(models[data.draw(st.sampled_from(SPECS))])
    described, numbers = header(files["weights.safetensors"])
    integers = st.one_of(st.integers(-2, 40), st.sampled_from(HUGE))
    for name in data.draw(st.lists(st.sampled_from(sorted(described)), min_size=1, max_size=2)):
        entry = dict(described[name])
        key = data.draw(st.sampled_from(sorted(entry)))
        if key == "dtype":
            kinds = ["F64", "F16", "BF16", "I32", "U8", "BOOL", "C64", "F8_E4M3", "I64", "X"]
            entry[key] = data.draw(st.sampled_from(kinds))
        else:
            entry[key] = data.draw(st.lists(integers, max_size=3) | st.none() | integers)
        described[name] = entry
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from(["", "x", "__metadata__", "encoder.0.weight", "../x"]))
        described[name] = described.pop(data.draw(st.sampled_from(sorted(described))))
    check(folder, files | {"weights.safetensors": joined(described, numbers)})


@given(data=st.data())
@examples(80)
def test_numbers_and_types_of_weights(data: st.DataObject, models: dict, folder: Path) -> None:
    files = dict(models[data.draw(st.sampled_from(SPECS))])
    weights = safetensors.torch.load(files["weights.safetensors"])
    name = data.draw(st.sampled_from(sorted(weights)))
    kinds = [torch.float64, torch.float16, torch.bool, torch.int8, torch.complex64]
    change = data.draw(st.sampled_from(["nan", "inf", "type", "shape", "gone", "swap"]))
    if change in ("nan", "inf") and weights[name].is_floating_point():
        weights[name] = weights[name].clone().fill_(float(change))
    elif change == "type":
        weights[name] = weights[name].to(data.draw(st.sampled_from(kinds)))
    elif change == "shape":
        weights[name] = weights[name].reshape(-1).contiguous()[:-1].clone()
    elif change == "gone":
        del weights[name]
    else:
        other = data.draw(st.sampled_from(sorted(weights)))
        weights[name], weights[other] = weights[other], weights[name]
    said = check(folder, files | {"weights.safetensors": safetensors.torch.save(weights)})
    assert said or change not in ("gone", "shape")


def described(files: dict[str, bytes], **changes: Any) -> dict[str, bytes]:  # noqa: ANN401
    content = json.loads(files["trial.json"]) | changes
    return files | {"trial.json": json.dumps(content).encode()}


SIZES = [
    *({"net": f"mlp[hidden={n}x{n}]"} for n in HUGE),
    *({"net": f"gated[hidden={n}]"} for n in HUGE),
    *({"net": f"resnet[channels={n}]"} for n in HUGE),
    *({"latent": n} for n in HUGE),
    *(
        {"prior": f"{name}[{option}=10000000]"}
        for name in PRIORS
        for option, default in PRIORS[name].options.items()
        if type(default) in (int, tuple)
    ),
    {"prior": "maf[hidden=100000x100000]"},
    {"prior": f"maf[hidden={'1x' * 20_000}1]"},
]


@pytest.mark.parametrize("change", SIZES, ids=lambda c: next(iter(c.values())).__str__()[:40])
def test_no_size_is_believed(change: dict[str, Any], models: dict, folder: Path) -> None:
    """A few kilobytes may ask for a model of any size: what it takes follows the weights."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check(folder, described(models["gauss"], **change))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 2**20 * (1 if sys.platform == "linux" else 1024)  # 1 GiB


def test_a_module_of_others_is_not_imported(
    models: dict, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "executed"
    (tmp_path / "crafted.py").write_text(
        f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
        "from flowvae.priors import gauss\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for field in ("prior", "net", "dataset"):
        files = described(models["gauss"], **{field: "crafted:gauss"})
        assert "is not part of flowvae" in check(folder, files)
        assert not marker.exists()
    (folder / "trial.json").write_bytes(
        described(models["gauss"], prior="crafted:gauss")["trial.json"]
    )
    vae, _ = load(folder, trusted=True)
    assert isinstance(vae, VAE)
    assert marker.exists()


def test_links_and_devices(models: dict, tmp_path: Path) -> None:
    for name in NAMES:
        folder = tmp_path / name
        folder.mkdir()
        for other, content in models["gauss"].items():
            (folder / other).write_bytes(content)
        (folder / name).unlink()
        for target in ("/dev/zero", str(tmp_path), "nowhere", name):
            (folder / name).symlink_to(target)
            assert refusal(load, folder)
            (folder / name).unlink()
        elsewhere = tmp_path / f"{name}.kept"
        elsewhere.write_bytes(models["gauss"][name])
        (folder / name).symlink_to(elsewhere)
        assert load(folder)[1].latent == 2


@pytest.mark.parametrize(
    "content",
    [
        b'{"shape": [' + b"9" * 5000 + b", 1]}", b"[" * 100_000, b'{"shape": [[[]], 2]}',
        b'{"shape": ' + b"[" * 900 + b"]" * 900 + b"}", b"\xff\xfe", b"NaN",
        b'{"shape": [NaN, 2]}',
        b'{"shape": [4, 4], "shape": [9999999999999999999999, 1]}', b'{"shape": [1e400, 1]}',
    ],
    ids=range(9),
)  # fmt: skip
def test_shapes(content: bytes, models: dict, folder: Path) -> None:
    assert check(folder, models["gauss"] | {"image.json": content})


@pytest.mark.parametrize("spec", list(PRIORS))
def test_all_priors_have_room_enough(spec: str, tmp_path: Path) -> None:
    for prior, net in ((spec, "mlp"), (narrow(spec), "resnet[channels=1]")):
        trial = Trial(prior=prior, latent=16, net=net)
        assert load(save(build(trial, (9, 9)), trial, tmp_path))[1] == trial


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        (lambda _: [torch.zeros(1) for _ in range(10**9)], "more than 50 operations"),
        (lambda _: [torch.zeros(30, 30) for _ in range(10**9)], "more than 1000 numbers"),
        (lambda wide: wide[:, None] * wide, "more than 1000 numbers"),
        (lambda wide: wide[:, None] @ wide[None], "more than 1000 numbers"),
        (lambda wide: wide.repeat(10**6), "more than 1000 numbers"),
        (lambda wide: wide.unique(return_inverse=True), "more than 1000 numbers"),
    ],
)
def test_room_ends_what_has_no_end(operation: Callable[[Tensor], object], said: str) -> None:
    wide = torch.zeros(600)
    with Room(elements=1000, operations=50), pytest.raises(InputError, match=said):
        operation(wide)
    with Room(elements=10**4, operations=50):
        assert wide.view(20, 30).mul_(2).nonzero().shape == (0, 2)
