"""The grid: what was typed, what it means, and what is refused."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from bench.grid.experiment_file import experiments
from bench.grid.grid import make_grid
from bench.grid.settings import SETTINGS
from bench.grid.stacking import even_stacks, stacks
from flowvae.data import DATASETS
from flowvae.errors import InputError
from flowvae.priors import PRIORS, Latent
from flowvae.trial import Trial


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


@pytest.mark.parametrize("name", experiments())
def test_an_experiment_opens_with_its_question_and_makes_a_grid(name: str) -> None:
    text = experiments()[name].read_text()
    assert text.startswith('question = "')
    assert text.partition("\n")[0].endswith('?"') or name == "digits"
    assert max(map(len, text.splitlines())) < 100
    grid = make_grid({}, name)
    assert grid.trials
    assert len({trial.id for trial in grid.trials}) == len(grid.trials)
    labels = {trial.labels["prior"] for trial in grid.trials}
    assert len(labels) == len(grid.axis("prior"))


def commands() -> list[list[str]]:
    """The command lines that the experiments' comments give, as words after the module."""
    found = []
    for path in experiments().values():
        text = path.read_text().replace("\\\n#", "")
        for line in re.findall(r"^#   python -m bench\.run (.*)$", text, re.MULTILINE):
            found.append(shlex.split(line))
    return found


@pytest.mark.parametrize("words", commands(), ids=lambda words: words[0])
def test_the_commands_in_the_experiments_make_grids(words: list[str]) -> None:
    name, *rest = words
    flags = {key.removeprefix("--"): value for key, value in batched(rest)}
    grid = make_grid({k: v for k, v in flags.items() if k != "name"}, name, flags["name"])
    assert grid.name == flags["name"] != name


def batched(words: list[str]) -> list[tuple[str, str]]:
    assert len(words) % 2 == 0
    return list(zip(words[::2], words[1::2], strict=True))


def test_the_experiments_of_all_priors_leave_none_out() -> None:
    for name, left_out in (("priors", set()), ("trouble", {"unaf"})):
        named = {trial.prior.partition("[")[0] for trial in make_grid({}, name).trials}
        assert named == set(PRIORS) - left_out


def test_the_matched_priors_have_equal_numbers_of_parameters() -> None:
    pixels = 28 * 28
    space = Latent(16, encoder=torch.nn.Linear(pixels, 32), pixels=pixels)
    specs = [spec for spec in make_grid({}, "matched").axis("prior") if spec != "gauss"]
    sizes = {
        spec: sum(p.numel() for p in PRIORS.build(spec, space).parameters()) for spec in specs
    }
    maf = sizes[PRIORS.resolve("maf")]
    assert len(sizes) == 14
    for spec, size in sizes.items():
        assert size == pytest.approx(maf, rel=0.05), spec


def test_equal_seconds_come_from_the_speeds_that_are_stated() -> None:
    """The comment's images a second decide the epochs of each prior."""
    text = experiments()["matched-time"].read_text()
    speeds = {k: int(v) for k, v in re.findall(r"([a-z]+(?:\[\S+\])?) (\d+)(?:;|\n)", text)}
    for trial in make_grid({}, "matched-time").trials:
        label = trial.labels["prior"]
        assert trial.epochs == round(64 * speeds[label] / speeds["gauss"]), label


def test_the_gated_protocol_is_the_published_one() -> None:
    grid = make_grid({}, "gated")
    gauss, vamp = grid.trials[:2]
    assert gauss.dataset == "mnist[valid=10000,binarise=stochastic]"
    assert gauss.net == "gated[hidden=300x300,logvar_min=-6,logvar_max=2]"
    assert (gauss.latent, gauss.batch, gauss.lr) == (40, 100, 5e-4)
    assert (gauss.warmup, gauss.patience, gauss.epochs) == (100, 50, 2000)
    assert (gauss.select, grid.evaluation.samples) == ("best", 5000)
    assert grid.evaluation.estimator == "encoder"
    assert vamp.prior == "vamp[components=500,start=noise]"
    assert vamp.but(prior="gauss") == gauss


def test_every_field_of_a_trial_can_be_set() -> None:
    assert {s.field for s in SETTINGS.values() if s.kind in ("axis", "dataset", "recipe")} == {
        field.name for field in fields(Trial)
    }
    flags = {"prior-lr": "1e-4", "schedule": "cosine", "warmup": "3", "patience": "5"}
    trial = make_grid(flags).trials[0]
    assert (trial.prior_lr, trial.schedule, trial.warmup, trial.patience) == (1e-4, "cosine", 3, 5)
    assert make_grid({"prior-lr": "none", "patience": "none"}).trials == make_grid({}).trials


@pytest.mark.parametrize(
    "name",
    ["fashion-mnist", "kmnist", "emnist-letters", "mnist-fixed", "omniglot", "file[path=a.npz]"],
)
def test_a_data_set_without_an_experiment_takes_the_recipe_of_mnist(name: str) -> None:
    grid = make_grid({"dataset": name, "priors": "gauss,maf"})
    recipe = make_grid({"priors": "gauss,maf"}, "mnist")
    assert grid.name == name.partition("[")[0]
    assert "MNIST" not in grid.question
    resolved = DATASETS.resolve(name)  # its own split and binarisation
    assert grid.trials == tuple(trial.but(dataset=resolved) for trial in recipe.trials)


def test_flags_win_over_a_data_sets_own_split_and_rule() -> None:
    flags = {"dataset": "kmnist", "valid": "500", "binarise": "stochastic"}
    assert make_grid(flags).trials[0].dataset == "kmnist[valid=500,binarise=stochastic]"


OTHERS = """
from pathlib import Path
from flowvae.specs.values import Natural

def cats(root: Path, *, valid: Natural = 5):
    "Cats."
"""


def test_the_data_set_of_a_module_names_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "others_data.py").write_text(OTHERS)
    monkeypatch.syspath_prepend(tmp_path)
    grid = make_grid({"dataset": "others_data:cats"})
    assert grid.name == "others_data-cats"
    assert grid.trials[0].dataset == "others_data:cats[valid=5]"


EACH = """
priors = ["gauss", "nsf", "maf"]
epochs = 9
[each."nsf[bins=8]"]
epochs = 3
lr = 2e-3
select = "best"
"""


def written(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def test_a_table_sets_what_holds_for_one_prior(tmp_path: Path) -> None:
    gauss, nsf, maf = make_grid({}, written(tmp_path, EACH)).trials
    assert (nsf.epochs, nsf.lr, nsf.select) == (3, 2e-3, "best")
    assert gauss.but(prior="maf") == maf
    assert (maf.epochs, maf.lr, maf.select) == (9, 1e-3, "last")


def test_a_flag_wins_over_the_table_of_a_prior(tmp_path: Path) -> None:
    trials = make_grid({"epochs": "5"}, written(tmp_path, EACH)).trials
    assert [trial.epochs for trial in trials] == [5, 5, 5]
    assert trials[1].lr == 2e-3
    (alone,) = make_grid({"priors": "maf"}, str(tmp_path / "mine.toml")).trials
    assert alone.epochs == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[each."nfs"]', "unknown prior 'nfs'.*did you mean 'nsf'"),
        ('[each."nsf[bins=4]"]', r"unknown prior in .*nsf\[bins=4\].*expected one of gauss, nsf"),
        ("[each.nsf]\nepoch = 3", r"unknown setting in .*mine.toml \[each.\"nsf\"\].*'epochs'"),
        ("[each.nsf]\nlatents = 3", "unknown setting.*'latents'"),
        ("[each.nsf]\nepochs = 0", r"'0' for .*\[each.\"nsf\"\] epochs: expected a whole"),
        ("[each.nsf]\n[each.'nsf[bins=8]']", "this prior has two tables"),
        ("each = 3", "expected 'each' to hold one table per prior"),
        ("each.nsf = 3", "expected 'each' to hold one table per prior"),
        ("training = 'post-hoc'\n[each.nsf]\nepochs = 3", "exclude one another"),
    ],
)
def test_a_bad_table_of_a_prior_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, f"priors = ['gauss', 'nsf']\n{text}\n")
    with pytest.raises(InputError, match=message):
        make_grid({}, file)


def test_learning_rates_to_choose_from(tmp_path: Path) -> None:
    grid = make_grid({"tune-lr": "1e-2,1e-3,1e-2"})
    assert (grid.rates, grid.tune_seeds) == ((1e-3, 1e-2), (1000,))
    assert make_grid({}).rates == ()
    file = written(tmp_path, "priors = 'gauss'\ntune-lr = [1e-3, 1e-2]\ntune-seeds = '7:9'\n")
    assert make_grid({}, file).tune_seeds == (7, 8)
    plain = make_grid({"lr": "0.1"}, file)  # a flag wins over the file
    assert plain.rates == ()
    assert plain.trials[0].lr == 0.1
    both = written(tmp_path, "priors = 'gauss'\nlr = 1e-3\n")
    assert make_grid({"tune-lr": "1,2"}, both).rates == (1, 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"tune-lr": "1e-3"}, "--tune-lr '1e-3': expected two learning rates or more"),
        ({"tune-lr": "0,1"}, "'0,1' for --tune-lr: expected a number, above 0"),
        ({"tune-lr": "1,2", "lr": "1"}, "--lr sets a learning rate that --tune-lr would choose"),
        ({"tune-lr": "1,2", "seeds": "0:2", "tune-seeds": "1:3"}, "seed 1 is among"),
        ({"tune-lr": "1,2", "valid": "0", "select": "last"}, "needs validation images"),
        ({"tune-seeds": "1:3"}, "--tune-seeds without --tune-lr"),
        ({"tune-seeds": "3:3", "tune-lr": "1,2"}, "is empty"),
    ],
)
def test_a_tuning_that_cannot_be_is_refused(flags: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_grid(flags)


def test_a_file_that_sets_and_tunes_a_learning_rate_is_refused(tmp_path: Path) -> None:
    text = "priors = 'gauss'\ntune-lr = [1e-3, 1e-2]\n[each.gauss]\nlr = 1\n"
    with pytest.raises(InputError, match=r"\[each.\"gauss\"\] lr sets a learning rate"):
        make_grid({}, written(tmp_path, text))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"priors": "gaus"}, "unknown prior 'gaus'.*gauss, .*maf, .*did you mean 'gauss'"),
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
        ({"estimator": "encodr"}, "'encodr' for --estimator: expected one of fitted, encoder"),
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


def test_even_stacks_are_as_equal_as_can_be_and_as_many_as_asked_for() -> None:
    trials = make_grid({"priors": "gauss,naf", "latents": "2", "seeds": "0:5"}).trials
    gauss = [trial for trial in trials if trial.prior == "gauss"]
    for most, sizes in ((8, [5]), (4, [3, 2]), (2, [2, 2, 1]), (1, [1] * 5)):
        made = even_stacks(gauss, most)
        assert [len(stack) for stack in made] == sizes
        assert [trial for stack in made for trial in stack] == gauss
    assert [len(stack) for stack in even_stacks(gauss, 8, 4)] == [2, 1, 1, 1]
    assert len(even_stacks(gauss, 8, 99)) == 5
    assert len(even_stacks(trials, 8)) == 6  # naf cannot be stacked


def test_the_longest_stack_is_cut_first() -> None:
    trials = make_grid({"priors": "gauss,maf", "latents": "2", "seeds": "0:4"}).trials
    made = even_stacks(
        trials, 8, 4, lambda stack: len(stack) * (9 if stack[0].arm == "maf" else 1)
    )
    assert [(stack[0].arm, len(stack)) for stack in made] == [
        ("gauss", 4),
        ("maf", 2),
        ("maf", 1),
        ("maf", 1),
    ]


def test_the_origin_of_an_option_decides() -> None:
    path_wins = make_grid({"dataset": "digits[valid=5]"}).trials[0].dataset
    assert path_wins.startswith("digits[valid=5,")
    with pytest.raises(InputError, match="--valid set the same option"):
        make_grid({"dataset": "digits[valid=5]", "valid": "37"})


def test_a_flag_wins_over_brackets_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('priors = "gauss"\ndataset = "digits[valid=100]"\n')
    assert "valid=37" in make_grid({"valid": "37"}, str(path)).trials[0].dataset
