"""The settings of a grid: what flags and experiment files set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flowvae.trial import Evaluation, Role, Trial, field_info

__all__ = ["SETTINGS", "Kind", "Setting"]


Kind = Role | Literal["option", "tuning"]


@dataclass(frozen=True)
class Setting:
    """One thing that a flag or an experiment's file sets.

    Arguments:
        field: The field of `Trial` or `Evaluation`, or the option of the data set.
        kind: The role of the field, see `FieldInfo`; or `option` for one of the data set, or
            `tuning` for a list of values that the field takes in the tuning.
        help: The flag's help text.
    """

    field: str
    kind: Kind
    help: str

    @property
    def is_list(self) -> bool:
        """Whether it takes several values."""
        return self.kind in ("axis", "tuning")


def _declared(description: type, *roles: Role) -> dict[str, Setting]:
    """Returns the settings of a description's fields of these roles, by flag."""
    return {
        info.flag: Setting(name, info.role, info.help)
        for name, info in field_info(description).items()
        if info.role in roles
    }


SETTINGS = {
    **_declared(Trial, "axis"),
    **_declared(Trial, "dataset"),
    "binarise": Setting(
        "binarise",
        "option",
        "how pixels become 0 or 1: threshold (x >= 1/2), stochastic, or fixed if published so",
    ),
    "valid": Setting(
        "valid",
        "option",
        "number of training images held out for validation, or 0; some data sets fix it",
    ),
    **_declared(Trial, "recipe"),
    "tune-lr": Setting("lr", "tuning", "learning rates to try for each prior first"),
    "tune-seeds": Setting("seed", "tuning", "seeds of --tune-lr, not in --seeds (default: 1000)"),
    **_declared(Evaluation, "evaluation"),
}
