"""Groups trials that differ in nothing but the seed into stacks."""

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
    made = []
    for group in _groups(trials):
        most = _most(group, size)
        made += [group[first : first + most] for first in range(0, len(group), most)]
    return made


def even_stacks(
    trials: Iterable[Trial],
    most: int,
    count: int = 1,
    seconds: Callable[[Sequence[Trial]], float] = len,
) -> list[list[Trial]]:
    """Groups trials as `stacks` does, each group in stacks that are as equal as can be.

    Arguments:
        trials: The trials.
        most: The most seeds of a stack.
        count: How many stacks there should be at least: while there are fewer, the group of the
            longest one is cut into one more, as long as one has several seeds.
        seconds: What a stack takes; only asked where stacks are too few.
    """
    groups = _groups(trials)
    cuts = [_cut(group, math.ceil(len(group) / _most(group, most))) for group in groups]
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


def _most(group: Sequence[Trial], size: int) -> int:
    """Returns the most members of a stack: one, where the prior cannot be stacked."""
    from flowvae.training.stack import stackable

    return size if size > 1 and stackable(group[0]) else 1


def _cut(group: list[Trial], parts: int) -> list[list[Trial]]:
    """Cuts a group into parts that differ by one trial at most, the larger ones first."""
    size, larger = divmod(len(group), parts)
    ends = [0, *itertools.accumulate(size + (part < larger) for part in range(parts))]
    return [group[first:last] for first, last in itertools.pairwise(ends)]
