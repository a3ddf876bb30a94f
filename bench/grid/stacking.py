"""Stacks: trials that differ in nothing but the seed, and are trained together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence

from flowvae.trial import Trial

__all__ = ["even_stacks", "stacks"]


def stacks(trials: Iterable[Trial], size: int) -> list[list[Trial]]:
    """Groups trials that differ in nothing but the seed, at most `size` in each stack."""
    trials = list(trials)
    if size == 1:
        return [[trial] for trial in trials]
    groups = []
    for group in _groups(trials):
        step = _max_size(group, size)
        groups += [group[first : first + step] for first in range(0, len(group), step)]
    return groups


def even_stacks(
    trials: Iterable[Trial],
    size: int,
    count: int = 1,
    seconds: Callable[[Sequence[Trial]], float] = len,
) -> list[list[Trial]]:
    """Groups trials as `stacks` does, each group into stacks of equal size, or nearly.

    Arguments:
        trials: The trials.
        size: The most seeds of a stack.
        count: The least number of stacks: while there are fewer, the group with the longest stack
            is split into one more, as long as a stack has several seeds.
        seconds: Returns how long a stack takes; called only if there are too few stacks.
    """
    groups = _groups(trials)
    cuts = [_cut(group, math.ceil(len(group) / _max_size(group, size))) for group in groups]
    while sum(map(len, cuts)) < count:
        several = [n for n, cut in enumerate(cuts) if len(cut[0]) > 1]
        if not several:
            break
        longest = max(several, key=lambda n: seconds(cuts[n][0]))
        cuts[longest] = _cut(groups[longest], len(cuts[longest]) + 1)
    return [stack for cut in cuts for stack in cut]


def _groups(trials: Iterable[Trial]) -> list[list[Trial]]:
    groups: dict[Trial, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.but(seed=0), []).append(trial)
    return list(groups.values())


def _max_size(group: Sequence[Trial], size: int) -> int:
    """Returns the most members of a stack: one, if the prior cannot be stacked."""
    from flowvae.training.stack import stackable

    return size if size > 1 and stackable(group[0]) else 1


def _cut(group: list[Trial], parts: int) -> list[list[Trial]]:
    """Splits a group into parts that differ by one trial at most, the larger ones first."""
    size, larger = divmod(len(group), parts)
    ends = [0, *itertools.accumulate(size + (part < larger) for part in range(parts))]
    return [group[first:last] for first, last in itertools.pairwise(ends)]
