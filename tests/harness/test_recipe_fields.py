"""A field of the recipe is declared once: flag, file, plan, run, report and footer follow."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from support.synthetic_grids import make
from support.trial_fields import OTHER

from bench.execution import plan_text
from bench.figures.style import footer
from bench.grid.grid import make_grid
from bench.report import page
from bench.run import main
from bench.store.run_info import trial_columns
from flowvae.specs.values import write
from flowvae.trial import Trial, field_info

INFO = field_info(Trial)
RECIPE = [name for name, info in INFO.items() if info.role == "recipe"]


def test_every_field_is_declared() -> None:
    assert list(INFO) == [field.name for field in fields(Trial)]


@pytest.mark.parametrize("name", RECIPE)
def test_a_field_of_the_recipe_is_a_flag_and_a_key_of_a_file(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info, value = INFO[name], OTHER[name]
    with pytest.raises(SystemExit):
        main(["--help"])
    assert f"--{info.flag} X" in (out := " ".join(capsys.readouterr().out.split()))
    assert info.help in out
    file = tmp_path / "mine.toml"
    file.write_text(f"priors = 'maf'\n{info.flag} = '{write(value)}'\n")
    for grid in (
        make_grid({"priors": "maf", info.flag: write(value)}, "mnist"),
        make_grid({}, str(file)),
    ):
        assert grid.axis(name) == [value]


@pytest.mark.parametrize("name", RECIPE)
def test_a_field_of_the_recipe_is_stated_in_plan_run_and_report(name: str) -> None:
    info, value = INFO[name], OTHER[name]
    usual, changed = Trial(prior="maf"), Trial(prior="maf").but(**{name: value})
    assert plan_text._recipe(changed, tuned=False)[name] == info.describe(value)
    assert bool(plan_text._recipe(usual, tuned=False)[name]) == info.always
    assert trial_columns(changed)[name] == value

    def recipe(stated: Any) -> str:  # noqa: ANN401
        made = make()
        analysis = made.analysis(frame=made.frame.assign(**{name: stated}))
        return dict(page._protocol(analysis, "command"))["recipe"]

    label = name.replace("_", " ")
    assert f", {label} {write(value)}" in recipe(value)
    assert (f", {label} " in recipe(info.default)) == info.always


def test_the_footer_of_a_figure_states_the_declared_fields() -> None:
    frame = make().frame
    stated = [name for name, info in INFO.items() if info.in_footer]
    assert stated == ["net", "epochs", "precision"]
    for name in set(stated) & set(frame):
        assert f"{name} {frame[name].iloc[0]}" in footer(frame)
