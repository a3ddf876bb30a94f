"""Every registered prior with small networks, so that a test takes no time."""

from __future__ import annotations

from flowvae.priors import PRIORS

SMALL = {
    "hidden": "16x16", "network": "8x8", "signal": "4", "components": "6", "exemplars": "5",
    "steps": "10",
}  # fmt: skip


def narrow(name: str, **more: str) -> str:
    """Return the spec of a prior with the small options that it has, and `more` of them."""
    options = {k: v for k, v in SMALL.items() if k in PRIORS[name].options} | more
    inside = ",".join(f"{key}={value}" for key, value in options.items())
    return f"{name}[{inside}]" if inside else name
