"""Frozen descriptions of what is fitted and of what is measured, each with a content id.

A `Trial` holds everything that changes the fitted numbers and nothing else; an `Evaluation` holds
what decides a test score of a fitted model. Equal descriptions have equal ids on every machine, so
that work already done is recognised, and a new evaluation never trains anything again.
"""

from __future__ import annotations

import hashlib
import json
import typing
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from flowvae.errors import InputError
from flowvae.estimator import ESTIMATORS, Estimator, EstimatorName
from flowvae.specs.values import Count, Natural, Positive, read, write

if TYPE_CHECKING:
    from flowvae.data import Dataset
    from flowvae.specs.registry import Registry

__all__ = [
    "BASE",
    "FIT_VERSION",
    "UNHASHED_DEFAULTS",
    "Audit",
    "Evaluation",
    "FieldInfo",
    "Precision",
    "Role",
    "Trial",
    "field_info",
    "field_types",
    "registries",
]


FIT_VERSION = 1
"""Counts the changes of the trainer that alter its numbers by more than rounding; part of every
trial's id."""
BASE = "gauss"
"""The prior of the model whose encoder and decoder a post-hoc prior is fitted to."""
Precision = Literal["float32", "tf32", "bf16", "float64"]
Role = Literal["axis", "dataset", "recipe", "evaluation"]


@dataclass(frozen=True)
class FieldInfo:
    """What is declared of a field of `Trial` or `Evaluation`, beside its type.

    Flags, keys of experiment files, the printed plan, the report's protocol and the footers of
    figures are derived from it.

    Arguments:
        default: Its default, or `dataclasses.MISSING`.
        flag: The flag of `bench.run` that sets it, without dashes.
        help: The flag's help text.
        role: An `axis` takes a list and multiplies the grid; the `dataset` has flags for its
            options, too; `recipe` is how a model is trained, `evaluation` how it is scored.
        words: Writes a value for the plan, such as `batch 64`; by default flag and value.
        always: Whether plan and report state it at its default, too.
        in_footer: Whether the footers of figures state it.
        hashed_default: Whether its default is part of a trial's id. It must not be for a field
            that is added later: trials fitted before keep their ids.
    """

    default: Any
    flag: str
    help: str
    role: Role = "recipe"
    words: Callable[[Any], str] | None = None
    always: bool = False
    in_footer: bool = False
    hashed_default: bool = True

    def describe(self, value: Any) -> str:  # noqa: ANN401
        """Returns a value in words."""
        return self.words(value) if self.words else f"{self.flag.replace('-', ' ')} {write(value)}"

    def is_stated(self, value: Any) -> bool:  # noqa: ANN401
        """Whether plan and report state a value."""
        return self.always or value != self.default


def field_info(description: type) -> dict[str, FieldInfo]:
    """Returns what is declared of a description's fields, by name.

    Example:
        >>> field_info(Trial)["batch"].flag, field_info(Trial)["batch"].describe(64)
        ('batch', 'batch 64')
    """
    return {f.name: f.metadata["info"] for f in fields(description) if f.metadata}


def _field(default: Any, flag: str, help: str, role: Role = "recipe", **more: Any) -> Any:  # noqa: A002, ANN401
    """Declares a field of a description."""
    return field(default=default, metadata={"info": FieldInfo(default, flag, help, role, **more)})


def _epochs(number: int) -> str:
    return f"{number} epoch{'' if number == 1 else 's'}"


def registries() -> dict[str, Registry[Any]]:
    """Returns the registries, by the field of a trial that names one of their entries."""
    from flowvae.data import (
        DATASETS,  # here, so that a command line can answer --help without torch
    )
    from flowvae.nets import NETS
    from flowvae.priors import PRIORS

    return {"prior": PRIORS, "dataset": DATASETS, "net": NETS}


@cache
def field_types(description: type) -> dict[str, Any]:
    """Returns the annotations of a description's fields; to evaluate them takes a millisecond."""
    return typing.get_type_hints(description, include_extras=True)


def _check(description: Trial | Evaluation | Audit) -> None:
    """Validates each field against its annotation and fills in the canonical value."""
    known = registries()
    kind: type = type(description)  # mypy would hold its instances to be hashed
    for name, annotation in field_types(kind).items():
        value = getattr(description, name)
        if name in known:
            if not isinstance(value, str):
                raise InputError(
                    f"bad {name} {write(value)}: expected a text such as 'NAME[OPTION=1]'"
                )
            resolved = known[name].resolve(value)
        else:
            try:
                resolved = read(write(value), annotation)
            except ValueError as expected:
                raise InputError(f"bad {name} '{write(value)}': expected {expected}") from None
        object.__setattr__(description, name, resolved)


def _hash(content: object) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One model to fit. Specs are resolved: every option of theirs is filled in.

    Arguments:
        prior: The prior's spec, such as `nsf[bins=16]`.
        latent: The number of latent features D.
        seed: The seed of all random streams.
        dataset: The data set's spec.
        net: The spec of the encoder's and decoder's bodies.
        epochs: The number of passes over the training images.
        batch: The number of images a step.
        lr: Adam's learning rate.
        precision: `float32`; `tf32` for all matrix products in less, or `bf16` for those of
            encoder and decoder, all else in float32; `float64`. See `flowvae.numerics.precision`.
        select: Whether the `last` epoch's weights are kept or those of the `best` validation ELBO.
        clip: The largest global norm of a step's gradient, or none.
        prior_lr: The prior's own learning rate, or none for the same.
        schedule: Whether the learning rates stay `constant` or fall to zero over all epochs, step
            by step, as half a period of a `cosine` (Loshchilov and Hutter, 2017, arXiv
            1608.03983).
        warmup: The number of epochs over which the rate's weight in the objective rises from 1 /
            warmup to one (Bowman et al., 2016, arXiv 1511.06349); what is reported is the bound.
        patience: The number of epochs without a better validation ELBO, after the warm-up, that
            end the training, or none.
        training: `joint`, or `post-hoc` for a prior fitted to the frozen encoder and decoder of
            the same trial with the Gaussian prior; see `flowvae.training.trainer.fit_prior`.

    Raises:
        InputError: A field is not what it should be.

    Example:
        >>> trial = Trial(prior="maf", latent=16)
        >>> trial.prior
        'maf[transforms=3,hidden=256x256,randperm=false]'
        >>> trial.name, trial.id == Trial(prior="maf[transforms=3]", latent=16).id
        ('maf-z16-s0', True)
    """

    # fmt: off
    prior: str = _field(
        MISSING, "priors", "priors to compare, such as gauss,nsf[bins=16,bound=8]", "axis"
    )
    latent: Count = _field(16, "latents", "numbers of latent features, such as 2,8,16", "axis")
    seed: Natural = _field(0, "seeds", "seeds, such as 0:5 (0 to 4) or 0,7", "axis")
    dataset: str = _field("digits", "dataset", "data set, such as digits or mnist", "dataset")
    net: str = _field(
        "mlp", "nets", "networks of encoder and decoder, such as mlp[hidden=256x256]", "axis",
        in_footer=True,
    )
    epochs: Count = _field(
        64, "epochs", "number of passes over the training images",
        words=_epochs, always=True, in_footer=True,
    )
    batch: Count = _field(256, "batch", "number of images in a step", always=True)
    lr: Positive = _field(
        1e-3, "lr", "Adam's learning rate", words="Adam {:g}".format, always=True
    )
    precision: Precision = _field(
        "float32", "precision", "float32, tf32 or bf16 (matrix products), float64", "axis",
        always=True, in_footer=True,
    )
    select: Literal["last", "best"] = _field(
        "last", "select", "weights to keep: last epoch, or best validation ELBO",
        words="weights of the {} epoch".format, always=True,
    )
    clip: Positive | None = _field(
        None, "clip", "largest norm of a gradient, or none",
        words="gradients clipped at {:g}".format,
    )
    prior_lr: Positive | None = _field(
        None, "prior-lr", "the prior's own learning rate, or none for the same",
        words="prior's own learning rate {:g}".format, hashed_default=False,
    )
    schedule: Literal["constant", "cosine"] = _field(
        "constant", "schedule", "learning rate over the epochs: constant, or cosine (falls to 0)",
        hashed_default=False,
    )
    warmup: Natural = _field(
        0, "warmup", "epochs over which the weight of the KL term rises to 1",
        words=lambda number: f"warm-up {_epochs(number)}", hashed_default=False,
    )
    patience: Count | None = _field(
        None, "patience", "epochs without a better validation ELBO that end training, or none",
        words=lambda number: f"patience {_epochs(number)}", hashed_default=False,
    )
    training: Literal["joint", "post-hoc"] = _field(
        "joint", "training", "joint, or post-hoc: the prior fitted to the frozen Gaussian VAE",
        "axis", hashed_default=False,
    )
    # fmt: on

    def __post_init__(self) -> None:
        _check(self)
        needs = [
            what
            for what, asked in (
                ("select 'best'", self.select == "best"),
                ("patience", self.patience),
            )
            if asked
        ]
        if needs and registries()["dataset"].options(self.dataset).get("valid") == 0:
            raise InputError(
                f"{' and '.join(needs)} needs validation images, and there are none (valid is 0): "
                "hold some out with --valid, or keep the 'last' of all epochs"
            )
        if self.warmup > self.epochs:
            raise InputError(
                f"a warm-up of {self.warmup} epochs does not end in {self.epochs}: the objective "
                "would never be the bound; give a smaller --warmup"
            )
        if self.base and self.prior == self.base.prior:
            raise InputError(f"the prior '{BASE}' has nothing to fit post hoc: train it jointly")

    @property
    def id(self) -> str:
        """The content id, 12 hexadecimal digits."""
        versions = {
            name: registry[getattr(self, name).partition("[")[0]].version
            for name, registry in registries().items()
        }
        content = asdict(self)
        for name, default in UNHASHED_DEFAULTS.items():
            if content[name] == default:
                del content[name]
        if self.base:
            content["base"] = self.base.id
        return _hash({"fit": FIT_VERSION, "versions": versions, **content})

    @property
    def name(self) -> str:
        """A name for display, such as `maf-z16-s0`; unlike the id it is not unique."""
        lower = "" if self.precision == "float32" else f"-{self.precision}"
        return f"{self.arm.replace(' ', '-')}-z{self.latent}-s{self.seed}{lower}"

    @property
    def arm(self) -> str:
        """What a table compares: the prior's short spec, and whether it was fitted post hoc."""
        return self.labels["prior"] + (" post-hoc" if self.base else "")

    @property
    def base(self) -> Trial | None:
        """The trial whose encoder and decoder a post-hoc prior is fitted to."""
        return None if self.training == "joint" else self.but(prior=BASE, training="joint")

    @property
    def labels(self) -> dict[str, str]:
        """The short specs: only the options that differ from their defaults."""
        return {name: known.label(getattr(self, name)) for name, known in registries().items()}

    def but(self, **changes: Any) -> Trial:  # noqa: ANN401
        """Returns the trial with some of its fields changed."""
        return replace(self, **changes)

    def to_json(self) -> str:
        """Writes all fields, and the id for people."""
        return json.dumps({**asdict(self), "id": self.id}, indent=2)

    @classmethod
    def from_json(cls, text: str, *, trusted: bool = True) -> Trial:
        """Reads what `to_json` wrote.

        Arguments:
            text: The text.
            trusted: Whether it may name builders of other modules, which are then imported.

        Raises:
            InputError: The text is not a trial's.
        """
        try:
            content = json.loads(text)
            if not isinstance(content, dict):
                raise TypeError(f"it is a {type(content).__name__}")
            content.pop("id", None)
            for name in () if trusted else registries():
                if ":" in str(content.get(name)).partition("[")[0]:
                    raise InputError(
                        f"{name} '{content[name]}' is not part of flowvae, and its module would "
                        "be run: if you trust it, load the model with trusted=True"
                    )
            return cls(**content)
        except InputError:
            raise
        except (ValueError, RecursionError, TypeError) as error:
            names = ", ".join(f.name for f in fields(cls))
            raise InputError(f"not a trial ({error}): expected a JSON object of {names}") from None


UNHASHED_DEFAULTS: dict[str, Any] = {
    name: info.default for name, info in field_info(Trial).items() if not info.hashed_default
}
"""Defaults of the fields that were added later, by name: at these they are not hashed."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One way to score a fitted model; its id is apart from the trial's.

    Arguments:
        samples: The number K of importance samples per image.
        estimator: `fitted`: importance sampling from a proposal fitted to each image; `encoder`:
            from q(z|x), the protocol of most published tables.
        split: The images that are scored.
        precision: The precision of encoder and decoder; densities and sums are float32 or better.
        images: How many of them are scored, the first ones, or none for all.

    Example:
        >>> Evaluation(samples=5000).ladder, Evaluation(samples=500, estimator="encoder").ladder
        ((5000,), (1, 10, 100, 500))
    """

    samples: Count = _field(
        1000, "nll-samples", "number of importance samples K per image for the NLL", "evaluation"
    )
    estimator: EstimatorName = _field(
        "fitted",
        "estimator",
        "estimator of the NLL: fitted (a proposal fitted to each image) or encoder (Burda et al.)",
        "evaluation",
    )
    split: Literal["valid", "test"] = "test"
    precision: Precision = _field(
        "float32", "nll-precision", "precision of the scoring, as above", "evaluation"
    )
    images: Count | None = _field(
        None,
        "nll-images",
        "number of test images to score, the first ones; none for all",
        "evaluation",
    )

    def __post_init__(self) -> None:
        _check(self)

    @property
    def id(self) -> str:
        """The content id, 12 hexadecimal digits."""
        name = {"estimator": self.method.name, "version": self.method.version}
        content = {**asdict(self), **name}
        return _hash({k: v for k, v in content.items() if (k, v) != ("images", None)})

    def scored(self, data: Dataset) -> Dataset:
        """Returns the data set with those images alone in the split that is scored."""
        parts = ("test", "labels") if self.split == "test" else ("valid",)
        return replace(data, **{part: getattr(data, part)[: self.images] for part in parts})

    @property
    def method(self) -> Estimator:
        """The names of the estimator."""
        return ESTIMATORS[self.estimator]

    @property
    def ladder(self) -> tuple[int, ...]:
        """The numbers of samples that are reported, from the same draws."""
        return self.method.ladder(self.samples)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """One way to bracket the evidence by annealing; see `flowvae.evaluation.annealing`.

    Arguments:
        images: The number of simulated images, and of real test images beside them.
        chains: The number of chains an image.
        temperatures: The number T of increments from the start to p(x, z).
        leapfrogs: The number of leapfrog steps of a Hamiltonian transition.
        samples: The number K of samples of the estimate that is audited.
        estimator: The estimator that is audited.
        start: Where chains start: `fitted` at the proposal fitted to each image, with as many
            chains from q(z|x) beside them, or `encoder` at q(z|x) alone.

    Example:
        >>> Audit(temperatures=100).id == Audit(temperatures=100, chains=8).id
        True
    """

    images: Count = 100
    chains: Count = 8
    temperatures: Count = 200
    leapfrogs: Count = 3
    samples: Count = 1000
    estimator: EstimatorName = "fitted"
    start: EstimatorName = "fitted"

    VERSION = 1

    def __post_init__(self) -> None:
        _check(self)

    @property
    def id(self) -> str:
        """The content id, 12 hexadecimal digits."""
        content = asdict(self)
        if self.estimator == self.start == "encoder":  # ids that are older than the choice
            del content["estimator"], content["start"]
        else:
            content["audited"] = content.pop("estimator")
        return _hash({"estimator": "annealing", "version": self.VERSION, **content})
