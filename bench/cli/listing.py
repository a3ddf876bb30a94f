"""Prints the names of priors, nets, data sets and experiments, each with its meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.cli.console import print_labelled
from bench.grid.experiment_file import experiments, question
from flowvae.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from flowvae.specs.registry import Registry

__all__ = ["print_names"]


def print_names(console: Console) -> None:
    """Prints all priors, nets, data sets and experiments; needs no data."""
    from flowvae.trial import registries

    sections = {f"{known.kind}s": _entries(known) for known in registries().values()}
    sections["experiments"] = [
        (name, [question(path)]) for name, path in sorted(experiments().items())
    ]
    width = 2 + max(len(name) for entries in sections.values() for name, _ in entries)
    for title, entries in sections.items():
        print_labelled(console, title, "")
        for name, lines in entries:
            for head, line in zip([name] + [""] * len(lines), lines, strict=False):
                console.print(f"  {head:<{width}}{line}", markup=False, soft_wrap=True)


def _entries(registry: Registry[Any]) -> list[tuple[str, list[str]]]:
    """Returns each builder, ours and installed packages', with lines that describe it."""
    from flowvae.specs.values import write

    entries = []
    for name in dict.fromkeys([*registry, *(installed := registry.installed())]):
        mark = [] if name in registry else [f"installed: {installed[name].value}"]
        try:
            entry = registry[name]
            options = [f"{key}={write(value)}" for key, value in entry.options.items()]
        except InputError as error:  # a package's error must not hide other entries
            entries.append((name, [*mark, str(error)]))
            continue
        details = [*mark, entry.source, ", ".join(options)]
        details.append(f"note: {entry.caveat}" if entry.caveat else "")
        entries.append((name, [entry.summary, "; ".join(part for part in details if part)]))
    return entries
