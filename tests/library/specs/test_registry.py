"""Options, specs and registries: what is read, what it resolves to, what is refused and how."""

from __future__ import annotations

import inspect
import re
from typing import Any, Literal

import pytest

from flowvae.errors import InputError
from flowvae.specs.registry import Registry, Spec, split
from flowvae.specs.values import Count, Natural, Positive, Widths, read, write
from flowvae.trial import registries

REGISTRIES = registries()
ENTRIES = [(kind, name) for kind, registry in REGISTRIES.items() for name in registry]


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (Count, "16", 16),
        (Natural, "0", 0),
        (Positive, "0.001", 1e-3),
        (Positive, "1e-12", 1e-12),
        (Positive, "0.30000000000000004", 0.1 + 0.2),
        (Widths, "256x128", (256, 128)),
        (Widths, "8", (8,)),
        (bool, "true", True),
        (bool, "false", False),
        (str, "word", "word"),
        (Literal["last", "best"], "best", "best"),
        (Positive | None, "none", None),
        (Positive | None, "2.5", 2.5),
    ],
)
def test_value_is_read_and_written(annotation: Any, text: str, value: object) -> None:  # noqa: ANN401
    found = read(text, annotation)
    assert found == value
    assert type(found) is type(value)
    assert write(found) == text


@pytest.mark.parametrize(
    ("annotation", "text", "expected"),
    [
        (Count, "0", "a whole number, at least 1"),
        (Count, "x", "a whole number, at least 1"),
        (Count, "1.5", "a whole number, at least 1"),
        (Count, str(2**63), "a whole number, at least 1, and at most 9223372036854775807"),
        (Count, "1" + 400 * "0", "a whole number, at least 1, and at most 9223372036854775807"),
        (Count, "1" + 5000 * "0", "a whole number, at least 1"),
        (Natural, "-1", "a whole number, at least 0"),
        (Positive, "0", "a number, above 0"),
        (Positive, "nan", "a number, above 0"),
        (Positive, "inf", "a number, above 0"),
        (Positive | None, "None", "a number, above 0"),
        (Widths, "", "whole numbers as 256x256, at least 1"),
        (Widths, "256x", "whole numbers as 256x256, at least 1"),
        (Widths, "256x0", "whole numbers as 256x256, at least 1"),
        (bool, "True", "true or false"),
        (Literal["last", "best"], "first", "one of last, best"),
    ],
)
def test_bad_value_is_refused(annotation: Any, text: str, expected: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        read(text, annotation)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("gauss", ["gauss"]),
        (" gauss , maf ", ["gauss", "maf"]),
        ("nsf[bins=16,bound=8],maf", ["nsf[bins=16,bound=8]", "maf"]),
        ("gauss,,maf,", ["gauss", "maf"]),
        ("", []),
    ],
)
def test_split_respects_brackets(text: str, parts: list[str]) -> None:
    assert split(text) == parts


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("maf", "maf", ()),
        ("maf[]", "maf", ()),
        (" maf [ transforms = 3 ] ", "maf", (("transforms", "3"),)),
        ("nsf[bins=16,bound=8]", "nsf", (("bins", "16"), ("bound", "8"))),
    ],
)
def test_spec_is_parsed(text: str, name: str, options: tuple[tuple[str, str], ...]) -> None:
    assert Spec.parse(text) == Spec(name, options)


@pytest.mark.parametrize(
    "text", ["", "[bins=3]", "nsf[", "nsf[bins=3", "nsf[bins]", "nsf[bins=]", "nsf[=3]", "nsf[3]x"]
)
def test_malformed_spec_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"cannot read '{text}': expected NAME")):
        Spec.parse(text)


def test_option_given_twice_is_refused() -> None:
    with pytest.raises(InputError, match=r"'bins' stands twice in 'nsf\[bins=3,bins=4\]'"):
        Spec.parse("nsf[bins=3,bins=4]")


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (
            "prior",
            "gaus",
            "unknown prior 'gaus': expected one of gauss, .*; did you mean 'gauss'?",
        ),
        ("prior", "zzzzzz", "unknown prior 'zzzzzz': expected one of gauss, [^;]*$"),
        (
            "prior",
            "maf[transform=3]",
            "unknown option 'transform' of prior 'maf': expected one of transforms, hidden, "
            "randperm; did you mean 'transforms'?",
        ),
        (
            "prior",
            "maf[transforms=0]",
            "bad value '0' for option 'transforms' of prior 'maf': "
            "expected a whole number, at least 1",
        ),
        ("prior", "gauss[bins=3]", "prior 'gauss' takes no options; got 'bins=3'"),
        ("net", "mpl", "unknown net 'mpl': expected one of .*; did you mean 'mlp'?"),
        ("dataset", "minst", "unknown dataset 'minst': expected one of .*did you mean 'mnist'?"),
        ("dataset", "digits[binarise=fixed]", "expected one of threshold, stochastic"),
    ],
)
def test_unknown_name_or_option_is_one_clear_error(kind: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        REGISTRIES[kind].resolve(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_entry_is_complete(kind: str, name: str) -> None:
    """Holds every builder to the contract: a documented, typed default for each option."""
    registry, entry = REGISTRIES[kind], REGISTRIES[kind][name]
    assert entry.summary
    assert entry.source
    signature = inspect.signature(entry.build)
    for option, default in entry.options.items():
        parameter = signature.parameters[option]
        assert default is not parameter.empty, f"{option} has no default"
        assert registry.options(f"{name}[{option}={write(default)}]")[option] == default
        assert f"\n    {option}: " in inspect.getdoc(entry.build), f"{option} is not explained"
    assert parameters_are_plain(signature)


def parameters_are_plain(signature: inspect.Signature) -> bool:
    kinds = {p.kind for p in signature.parameters.values()}
    return kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_resolving_and_labelling_undo_each_other(kind: str, name: str) -> None:
    registry = REGISTRIES[kind]
    full = registry.resolve(name)
    assert registry.resolve(full) == full
    assert registry.label(full) == name
    shown = registry[name].options.keys() - set(registry[name].later)
    assert dict(Spec.parse(full).options).keys() == shown


def test_options_reach_the_builder() -> None:
    toys: Registry[tuple[object, ...]] = Registry("toy")

    @toys.register("toy", source="here")
    def toy(
        first: int, *, width: Widths = (4,), rate: Positive = 1.0, on: bool = False
    ) -> tuple[object, ...]:
        return first, width, rate, on

    assert toys.build("toy", 7) == (7, (4,), 1.0, False)
    assert toys.build("toy[on=true,rate=2,width=8x9]", 7) == (7, (8, 9), 2.0, True)
    assert toys.resolve("toy[on=true]") == "toy[width=4,rate=1,on=true]"
    assert toys.label("toy[on=false,rate=1.0,width=5]") == "toy[width=5]"
    assert toys["toy"].options["on"] is False  # building changed no default
