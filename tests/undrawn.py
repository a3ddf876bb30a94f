"""Commands that draw no figures, which takes longer than all else that a small grid does."""

from __future__ import annotations

import pytest

from bench import kills


def leave_undrawn(patch: pytest.MonkeyPatch) -> None:
    """Make the commands of this process draw no figures."""
    patch.setattr("bench.report.draw_all", lambda *_, **__: [])


def leave_processes_undrawn(patch: pytest.MonkeyPatch) -> None:
    """Make the processes that `bench.kills.start` starts draw no figures."""
    patch.setattr(kills, "_main", _main)


def _main(argv: list[str], folder: str) -> None:
    """What such a process does, by its name, so that it can be read there."""
    with pytest.MonkeyPatch.context() as patch:
        leave_undrawn(patch)
        kills._main(argv, folder)
