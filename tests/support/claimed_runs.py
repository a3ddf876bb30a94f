"""Runs that are started under a claim of their trial."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from bench.store.run_writer import RunWriter
from bench.store.runs import Store
from flowvae.data import Dataset
from flowvae.trial import Trial


def start(
    store: Store,
    trial: Trial,
    data: Dataset,
    tags: Mapping[str, str],
    *,
    replaced: Collection[str] = (),
    checkpointed: bool = False,
) -> RunWriter:
    """Claims a trial, opens its run and ends the claim, as a process that died would."""
    with store.claim([trial], replaced) as claim:
        return claim.start(trial, data, tags, checkpointed=checkpointed)
