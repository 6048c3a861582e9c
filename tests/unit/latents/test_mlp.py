"""The control of equal size."""

import pytest

from lpc import latents


@pytest.mark.parametrize("width", [None, 20])
def test_it_has_the_latents_size(width):
    """At least as many parameters, and fewer than one hidden unit (2d + 1) more."""
    latent, control = (
        sum(
            p.numel()
            for p in latents.build(latents.parse({"kind": kind, "codes": 10, "width": width}), 24, 0).parameters()
        )
        for kind in ("lpc", "mlp")
    )
    assert 0 <= control - latent < 2 * 24 + 1
