"""What a person can type wrong: a line that says so, never a traceback or a store half made."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from support.malformed import NASTY, damaged, examples, garbled, refusal

from bench.grid.experiment_file import experiments
from bench.grid.grid import MAX_TRIALS, make_grid
from bench.grid.settings import SETTINGS
from flowvae.errors import InputError
from flowvae.specs.registry import Spec
from flowvae.specs.values import Count, Natural, Positive, Real, Widths, read, write
from flowvae.trial import Trial, registries

VALID = {
    "priors": ["gauss,maf", "nsf[bins=16,bound=8]", "maf[transforms=3,hidden=256x256]"],
    "latents": ["2", "2,8,16", "1:4"],
    "seeds": ["0", "0:3", "0,7"],
    "nets": ["mlp", "mlp[hidden=256x256]", "gated[logvar_min=-6,logvar_max=none]"],
    "training": ["joint", "joint,post-hoc"],
    "dataset": ["digits", "mnist[valid=0]", "file[path=a.npz]"],
    "binarise": ["threshold", "stochastic"],
    "precision": ["float32", "float32,bf16"],
    "tune-lr": ["1e-3,1e-2"],
    "tune-seeds": ["1000", "1000:1003"],
    "schedule": ["constant", "cosine"],
    "select": ["last", "best"],
    "nll-precision": ["float32"],
}
NUMBERS = ["1", "16", "1e-3", "none"]
SMALL = {"priors": "gauss", "latents": "2", "seeds": "0"}


@st.composite
def flags(draw: st.DrawFn) -> dict[str, str]:
    """Draws one bad flag or two, beside others that keep the grid small."""
    keys = draw(st.lists(st.sampled_from(list(SETTINGS)), min_size=1, max_size=2))
    return SMALL | {key: draw(garbled(VALID.get(key, NUMBERS))) for key in keys}


def counted(said: str | None) -> str:
    event("refused" if said else "taken")
    return said or ""


@given(flags=flags())
@examples(300)
def test_flags(flags: dict[str, str]) -> None:
    counted(refusal(make_grid, flags))


@pytest.mark.parametrize("value", NASTY, ids=range(len(NASTY)))
def test_each_flag_takes_or_refuses_what_is_nasty(value: str) -> None:
    for key in SETTINGS:
        said = refusal(make_grid, SMALL | {key: value})
        assert said is None or key in said or "'" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"seeds": f"0:{10**12}"}, f"for --seeds: expected at most {MAX_TRIALS} values"),
        ({"seeds": "0:9000,0:9000"}, f"for --seeds: expected at most {MAX_TRIALS} values"),
        ({"seeds": "0:5000", "latents": "1:101"}, "500000 trials .*--seeds 5000.*at most"),
        ({"seeds": f"0:{'9' * 5000}"}, "for --seeds: expected a whole number.*in the range"),
        ({"latents": str(10**30)}, "for --latents: expected a whole number, at least 1, and at"),
    ],
)
def test_a_grid_of_absurd_size_is_refused_before_it_is_made(
    flags: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_grid(SMALL | flags)


TEXTS = [path.read_bytes() for path in experiments().values()]
EXTRA = b"""
[each."nsf[bins=16]"]
lr = 2e-3
epochs = 3
"""


@st.composite
def toml(draw: st.DrawFn) -> bytes:
    """Draws an experiment's file: damaged bytes, or a key with a value of another type."""
    text = draw(st.sampled_from(TEXTS)) + draw(st.sampled_from([b"", EXTRA]))
    if draw(st.booleans()):
        return draw(damaged(text))
    more = ["question", "each", "each.gauss", "each.gauss.lr", "x"]
    key = draw(st.sampled_from([*SETTINGS, *more]))
    value = draw(
        st.one_of(
            garbled(VALID.get(key, NUMBERS)).map(json.dumps),  # most of JSON's values are TOML's
            st.recursive(
                st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=5)),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
                max_leaves=5,
            ).map(json.dumps),
            st.sampled_from(
                ["1979-05-27", "[[]]", "{}", "{a = {b = 1}}", "nan", "-inf", "0x" + "f" * 5000,
                 "9" * 5000, "[" * 2000, "[" * 300 + "]" * 300, "'''\n\n'''", '"\\u0000"']
            ),
        )
    )  # fmt: skip
    return f"{key} = {value}\n".encode() + text


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder to work in, without our variables in the environment."""
    folder = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("FLOWVAE_DATA", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        yield folder


@given(content=toml())
@examples(250)
def test_experiment_files(content: bytes, scratch: Path) -> None:
    path = scratch / "mine.toml"
    path.write_bytes(content)
    said = counted(refusal(make_grid, {}, str(path)))
    path.unlink()
    assert not said or str(path) in said or "--" in said
    assert not os.listdir(scratch)


@given(text=st.one_of(st.sampled_from(NASTY), st.text()))
@examples(100)
def test_experiment_names(text: str, scratch: Path) -> None:
    for name in (text, f"{text}.toml"):
        refusal(make_grid, SMALL, name)
        refusal(make_grid, SMALL, None, text)


def test_an_experiment_of_an_editor_that_writes_a_mark_of_byte_order_is_read(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbfpriors = 'gauss'\n")
    assert make_grid({}, str(path)).trials[0].prior == "gauss"
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=r"cannot read the experiment .*mine.toml"):
        make_grid({}, str(path))


@pytest.mark.parametrize(
    "annotation",
    [Count, Natural, Positive, Real, Widths, bool, str, Count | None, Positive | None],
    ids=str,
)
@given(text=garbled(["16", "0.001", "256x256", "true", "none"]))
@examples(150)
def test_options_are_read_or_refused(annotation: Any, text: str) -> None:  # noqa: ANN401
    try:
        value = read(text, annotation)
    except ValueError:
        return
    assert read(write(value), annotation) == value


SPECS = {
    "prior": VALID["priors"][1:] + ["vamp[components=500,start=noise]", "cnf[steps=3]"],
    "net": VALID["nets"][1:],
    "dataset": ["digits[valid=5]", "file[path=a.npz,valid=3,binarise=fixed]"],
}


@pytest.mark.parametrize("kind", SPECS)
@given(data=st.data())
@examples(120)
def test_specs_resolve_to_themselves_or_are_refused(kind: str, data: st.DataObject) -> None:
    known, text = registries()[kind], data.draw(garbled(SPECS[kind]))
    if counted(refusal(known.resolve, text)):
        return
    resolved = known.resolve(text)
    assert known.resolve(resolved) == resolved
    assert known.options(known.label(text)) == known.options(resolved)
    assert str(Spec.parse(resolved)) == resolved


TRIAL = Trial(prior="nsf[bins=16]", latent=2, clip=1.0, training="post-hoc").to_json()


@st.composite
def trial_json(draw: st.DrawFn) -> str:
    """Draws a trial's JSON: damaged, or with fields of other values and types."""
    if draw(st.booleans()):
        return draw(damaged(TRIAL.encode())).decode(errors="surrogateescape")
    content = json.loads(TRIAL)
    value = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
        st.sampled_from(NASTY), st.lists(st.integers(), max_size=2), st.just({"a": [1]}),
        st.just(10**400),
    )  # fmt: skip
    for key in draw(st.lists(st.sampled_from([*content, "x", ""]), min_size=1, max_size=3)):
        content[key] = draw(value)
    return json.dumps(content)


@given(text=trial_json())
@examples(300)
def test_trials_of_json(text: str) -> None:
    if not counted(refusal(Trial.from_json, text)):
        trial = Trial.from_json(text)
        assert Trial.from_json(trial.to_json()) == trial
        assert trial.name
        assert trial.id


NO_TRIAL = [
    '{"prior": "gauss", "latent": ' + "9" * 5000 + "}",
    "[" * 100_000,
    '{"a":' * 100_000,
    "9" * 5000,
    '{"prior": "gauss", "lr": NaN}',
    '{"prior": "gauss", "lr": -Infinity}',
    '{"self": 1}',
]


@pytest.mark.parametrize("text", NO_TRIAL, ids=range(len(NO_TRIAL)))
def test_json_that_is_no_trial(text: str) -> None:
    assert refusal(Trial.from_json, text)


@pytest.mark.parametrize(
    "value", [10**400, 10**5000, -(10**5000), [1], {}, b"2", object(), 2.5], ids=range(8)
)
def test_fields_of_other_types(value: Any) -> None:  # noqa: ANN401
    for field in ("latent", "seed", "lr", "clip", "prior", "select"):
        if (field, value) not in (("lr", 2.5), ("clip", 2.5)):
            assert refusal(lambda: Trial(**{"prior": "gauss", field: value}))  # noqa: B023
