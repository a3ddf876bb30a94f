"""The grid: what was typed, what it means, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.grid import experiments, make_grid, stacks
from flowvae.errors import InputError


def test_axes_multiply_and_a_seed_is_whole_before_the_next() -> None:
    grid = make_grid({"priors": "gauss,maf[transforms=2]", "latents": "2,4", "seeds": "1:3"})
    names = [trial.name for trial in grid.trials]
    assert names == [
        *("gauss-z2-s1", "maf[transforms=2]-z2-s1", "gauss-z4-s1", "maf[transforms=2]-z4-s1"),
        *("gauss-z2-s2", "maf[transforms=2]-z2-s2", "gauss-z4-s2", "maf[transforms=2]-z4-s2"),
    ]


def test_post_hoc_priors_bring_the_trial_that_they_start_from() -> None:
    flags = {"priors": "gauss,maf", "latents": "2", "seeds": "0:2"}
    both = make_grid({**flags, "training": "joint,post-hoc"})
    assert [trial.name for trial in both.trials] == [
        name
        for seed in (0, 1)
        for name in (f"gauss-z2-s{seed}", f"maf-z2-s{seed}", f"maf-post-hoc-z2-s{seed}")
    ]
    alone = make_grid({**flags, "priors": "maf", "training": "post-hoc", "seeds": "1"})
    assert [trial.name for trial in alone.trials] == ["gauss-z2-s1", "maf-post-hoc-z2-s1"]
    with pytest.raises(InputError, match="--training: the prior 'gauss' has nothing to fit"):
        make_grid({**flags, "priors": "gauss", "training": "post-hoc"})
    with pytest.raises(InputError, match="'posthoc' for --training: expected one of joint, post"):
        make_grid({**flags, "training": "posthoc"})


def test_a_flag_wins_over_the_file_and_the_file_over_the_default() -> None:
    file = make_grid({}, "tutorial").trials[0]
    assert (file.latent, file.epochs, file.dataset) == (
        16,
        64,
        "mnist[valid=0,binarise=threshold]",
    )
    assert make_grid({"epochs": "3"}, "tutorial").trials[0].epochs == 3
    assert file.clip is None


def test_options_of_the_data_set_can_be_flags_or_in_brackets() -> None:
    flag = make_grid({"valid": "0", "select": "last"}).trials
    spec = make_grid({"dataset": "digits[valid=0]", "select": "last"}).trials
    assert flag == spec


def test_the_tutorial_is_the_tutorials() -> None:
    trials = make_grid({}, "tutorial").trials
    assert [t.labels["prior"] for t in trials] == ["gauss", "maf", "nsf"]
    maf = trials[1]
    assert maf.prior == "maf[transforms=3,hidden=256x256,randperm=false]"
    assert (maf.net, maf.latent) == ("mlp[hidden=1024x1024]", 16)
    assert (maf.batch, maf.lr, maf.epochs, maf.select) == (256, 1e-3, 64, "last")
    with pytest.raises(InputError, match="no validation|none"):
        make_grid({"select": "best"}, "tutorial")


def test_every_experiment_opens_with_a_question_and_makes_a_grid() -> None:
    assert {"digits", "mnist", "tutorial"} <= set(experiments())
    for name, path in experiments().items():
        assert path.read_text().startswith('question = "')
        assert make_grid({}, name).trials


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"priors": "gaus"}, "unknown prior 'gaus'.*gauss, maf, nsf.*did you mean 'gauss'"),
        (
            {"priors": "maf[transform=3]"},
            "unknown option 'transform' of prior 'maf'.*did you mean 'transforms'",
        ),
        ({"priors": "gauss[x=1]"}, "takes no options"),
        ({"priors": "maf[transforms=0]"}, "'0' for option 'transforms'.*at least 1"),
        ({"priors": "maf[transforms"}, "cannot read"),
        ({"priors": ","}, "--priors ',' is empty"),
        ({"latents": "0"}, "'0' for --latents.*at least 1"),
        ({"latents": "x"}, "'x' for --latents.*whole number"),
        ({"latents": "2:"}, "'2:' for --latents"),
        ({"seeds": "5:5"}, "--seeds '5:5' is empty"),
        ({"seeds": "-1"}, "--seeds"),
        ({"lr": "nan"}, "--lr"),
        ({"precision": "half"}, "one of float32, tf32, bf16, float64"),
        ({"dataset": "mnits"}, "unknown dataset.*did you mean 'mnist'"),
        ({"valid": "1200x"}, "option 'valid'"),
        ({"nll-samples": "0"}, "--nll-samples"),
    ],
)
def test_what_is_refused_says_what_was_expected(flags: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_grid(flags)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "'epoch'.*did you mean 'epochs'"),
        ("epochs = ", "not TOML"),
        ("epochs = 0", r"bad value '0' for .*toml: epochs"),
        ("question = 3", "'question'"),
        ("lr = {a = 1}", "'lr'"),
        ("latents = [2]", "names no priors"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        make_grid({}, str(path))
    assert "mine.toml" in str(caught.value)


def test_an_absent_file_and_an_unknown_experiment_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the experiment"):
        make_grid({}, str(tmp_path / "none.toml"))
    with pytest.raises(InputError, match="unknown experiment 'tutorail'.*'tutorial'"):
        make_grid({}, "tutorail")


def test_stacks_hold_seeds_of_one_arm() -> None:
    trials = make_grid({"priors": "gauss,maf", "latents": "2", "seeds": "0:5"}).trials
    made = stacks(trials, 3)
    assert sorted(map(len, made)) == [2, 2, 3, 3]
    assert all(len({trial.but(seed=0) for trial in stack}) == 1 for stack in made)
    assert [trial for stack in stacks(trials, 1) for trial in stack] == list(trials)


def test_the_origin_of_an_option_decides() -> None:
    path_wins = make_grid({"dataset": "digits[valid=5]"}).trials[0].dataset
    assert path_wins.startswith("digits[valid=5,")
    with pytest.raises(InputError, match="--valid set the same option"):
        make_grid({"dataset": "digits[valid=5]", "valid": "37"})


def test_a_flag_wins_over_brackets_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('priors = "gauss"\ndataset = "digits[valid=100]"\n')
    assert "valid=37" in make_grid({"valid": "37"}, str(path)).trials[0].dataset
