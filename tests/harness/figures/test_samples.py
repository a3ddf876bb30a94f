"""Pictures of models side by side: the maps, the sheets, the manifolds, and their tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from support.synthetic_grids import Made, make

from bench.execution import artifacts
from bench.figures import catalogue, label_placement, latent_maps
from bench.figures import samples as figures_samples
from bench.figures import style as figure_style
from bench.statistics import captions, frames


@pytest.fixture(scope="module")
def grid() -> Made:
    """Three priors at two latent sizes, three seeds, one of them diverged."""
    return make(("gauss", "maf", "nsf[bins=16,bound=8]"), diverged=(("maf", 16, 1),))


def text(figure: Figure) -> str:
    return figure.get_supxlabel().replace("\n", " ")


def marked(figure: Figure, gid: str = "diverged") -> list[Any]:
    return [a for a in figure.findobj(include_self=False) if a.get_gid() == gid]


def test_maps_share_their_limits_and_shade_the_mass_they_say(grid: Made) -> None:
    figure = latent_maps.latent_maps(grid.analysis())
    assert [ax.get_title("left") for ax in figure.axes] == frames.priors(grid.frame)
    assert len({(*ax.get_xlim(), *ax.get_ylim()) for ax in figure.axes}) == 1
    axis = np.linspace(-6, 6, 241)
    x, y = np.meshgrid(axis, axis)
    # a standard normal in two dimensions holds 1 - exp(-r^2 / 2) within r
    levels = latent_maps._mass_levels(-(x**2 + y**2) / 2, np.array([0.9, 0.5]))
    np.testing.assert_allclose(levels, [np.log(0.1), np.log(0.5)], atol=0.02)


def test_sheets_show_one_seed_that_all_have_complete() -> None:
    made = make(diverged=(("maf", 16, 0), ("gauss", 16, 1)))
    figure = figures_samples.sample_sheet(made.analysis())
    assert all("seed 2" in ax.get_xlabel() for ax in figure.axes)
    lost = make(diverged=tuple(("maf", 16, s) for s in range(3)))
    assert len(marked(figures_samples.sample_sheet(lost.analysis()))) == 1


def test_a_mosaic_keeps_the_images_in_reading_order() -> None:
    shades = np.array([0.0, 0.2, 0.4, 1.0])
    images = shades[:, None, None] * np.ones((4, 2, 3))
    sheet = figures_samples._mosaic(figures_samples._square(images), gutter=0.1)
    height, width, _ = sheet.shape
    found = [sheet[height * y // 4, width * x // 4, 0] for y in (1, 3) for x in (1, 3)]
    assert found == [255, 204, 153, 0]
    for edge in (sheet[0], sheet[-1], sheet[:, 0], sheet[:, -1], sheet[height // 2]):
        assert (edge == figures_samples.GUTTER_COLOUR).all()


@pytest.mark.parametrize(
    ("labels", "named", "colours"),
    [
        pytest.param(np.arange(300) % 4, 4, 4, id="digits"),
        pytest.param(1 + np.arange(300) % 26, 0, 10, id="letters from 1, more than colours"),
        pytest.param(np.zeros(300, int), 0, 1, id="no classes"),
    ],
)
def test_any_classes_can_be_mapped(labels: NDArray[Any], named: int, colours: int) -> None:
    made = make(latents=(2,), seeds=1)
    for run in made.maps:
        made.maps[run] |= {"codes": made.maps[run]["codes"][:300], "labels": labels}
    figure = latent_maps.latent_maps(made.analysis())
    ax = figure.axes[0]
    assert len(ax.texts) == named
    assert len(np.unique(ax.collections[-1].get_facecolor(), axis=0)) == colours
    assert ("coloured by class" in text(figure)) == (colours > 1)


def test_the_tables_behind_pictures_hold_what_is_drawn(
    grid: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = (latent_maps.latent_maps, figures_samples.prior_manifold, figures_samples.sample_sheet)
    monkeypatch.setattr(
        catalogue, "FIGURES", {draw.__name__: catalogue.FIGURES[draw.__name__] for draw in shown}
    )
    samples = grid.samples | {captions.TEST_IMAGES: np.ones((40, 16, 16), np.uint8)}
    catalogue.draw_all(grid.analysis(samples=samples), tmp_path, dpi=80)
    points = pd.read_csv(tmp_path / "latent_maps.csv")
    mine = points[points["prior"] == "maf"]
    known = grid.maps[f"maf-z2-s{mine['seed'].iloc[0]}"]
    assert list(points) == ["prior", "seed", "image", "x", "y", "label"]
    np.testing.assert_allclose(mine[["x", "y"]], known["codes"], atol=1e-4)
    np.testing.assert_array_equal(mine["label"], known["labels"])

    sheet = pd.read_csv(tmp_path / "sample_sheet.csv")
    assert list(sheet)[:4] == ["prior", "seed", "image", "p0"]
    assert dict(sheet["prior"].value_counts()) == dict.fromkeys(sheet["prior"].unique(), 36)
    real = sheet[sheet["prior"] == captions.TEST_IMAGES]
    assert real["seed"].isna().all()
    assert (real.filter(regex="^p[0-9]") == 100).all(axis=None)
    mine = sheet[sheet["prior"] == "gauss"]
    drawn = grid.samples[f"gauss-z16-s{mine['seed'].iloc[0]:.0f}"].reshape(36, -1)
    np.testing.assert_allclose(mine.filter(regex="^p[0-9]"), 100 * drawn, atol=0.5)

    places = pd.read_csv(tmp_path / "prior_manifold.csv")
    mine = places[places["prior"] == "maf"]
    assert list(mine["u"][:5]) == [0.125, 0.375, 0.625, 0.875, 0.125]
    assert list(mine["v"][:5]) == [0.125] * 4 + [0.375]
    known = grid.maps[f"maf-z2-s{mine['seed'].iloc[0]}"]
    np.testing.assert_allclose(mine[["x", "y"]], known["places"].reshape(-1, 2), atol=1e-4)
    pixels = mine.filter(regex="^p[0-9]")
    np.testing.assert_allclose(pixels, known["manifold"].reshape(16, -1) / 2.55, atol=0.5)


def test_pictures_that_were_kept_without_a_manifold_are_drawn() -> None:
    made = make(latents=(2,), seeds=1)
    old = {
        run: {name: array for name, array in arrays.items() if name not in ("places", "manifold")}
        for run, arrays in made.maps.items()
    }
    assert len(latent_maps.latent_maps(made.analysis(maps=old)).axes) == 2
    assert len(figures_samples.sample_sheet(made.analysis()).axes) == 2
    with pytest.raises(figure_style.NoDataError, match="manifold"):
        figures_samples.prior_manifold(made.analysis(maps=old))


def test_test_images_come_first_in_a_sheet(grid: Made) -> None:
    samples = grid.samples | {captions.TEST_IMAGES: np.zeros((64, 16, 16), np.uint8)}
    figure = figures_samples.sample_sheet(grid.analysis(samples=samples))
    titles = [ax.get_title("left") for ax in figure.axes]
    assert titles == [captions.TEST_IMAGES, *frames.priors(grid.frame)]
    assert figure.axes[0].get_xlabel() == "the first 64"


def test_a_map_of_another_scale_has_its_own(grid: Made) -> None:
    maps = dict(grid.maps)
    for run in maps:
        if run.startswith("maf"):
            maps[run] = maps[run] | {"codes": 4 * maps[run]["codes"]}
    figure = latent_maps.latent_maps(grid.analysis(maps=maps))
    ends = [ax.get_xlim()[1] for ax in figure.axes]
    assert ends[1] == pytest.approx(4 * ends[0], rel=0.2)
    assert "each panel has its own scale" in text(figure)
    assert all(ax.get_xticks().size for ax in figure.axes)


def test_names_are_pushed_apart_and_stay_inside() -> None:
    places = label_placement.push_apart(np.zeros((6, 2)), gap=0.3, reach=1.0)
    away = np.linalg.norm(places[:, None] - places, axis=-1)[np.triu_indices(6, 1)]
    assert away.min() > 0.28
    assert np.abs(places).max() <= 1


def test_quantiles_of_a_mixture_lie_where_it_has_its_mass() -> None:
    axis = np.linspace(-6, 6, 241)
    x, y = np.meshgrid(axis, axis)
    # half of the mass at x = -3, y = 0, half at x = 3, where y has twice the spread and mean 1
    parts = [-(((x + 3) / 0.5) ** 2 + (y / 0.5) ** 2) / 2 - 2 * np.log(0.5)]
    parts += [-(((x - 3) / 0.5) ** 2 + (y - 1) ** 2) / 2 - np.log(0.5)]
    places = artifacts.quantiles(np.logaddexp(*parts), axis, axis, 4)
    deviation = 0.67449  # of a normal's quartile
    expected = [-3 - 0.5 * deviation, -3 + 0.5 * deviation, 3 - 0.5 * deviation]
    np.testing.assert_allclose(places[0, :, 0], [*expected, 3 + 0.5 * deviation], atol=0.02)
    eighths = np.array([-1.15035, -0.31864, 0.31864, 1.15035])
    np.testing.assert_allclose(places[:, 1, 1], 0.5 * eighths, atol=0.02)
    np.testing.assert_allclose(places[:, 2, 1], 1 + eighths, atol=0.02)


def test_quantiles_of_no_density_are_a_grid() -> None:
    axis = np.linspace(-2, 2, 41)
    places = artifacts.quantiles(np.full((41, 41), np.nan), axis, axis, 3)
    np.testing.assert_allclose(places[0, :, 0], [-1.37, 0, 1.37], atol=0.06)
