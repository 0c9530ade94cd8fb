"""What the tests of commands share."""

from __future__ import annotations

from dsv3rt.testing import preset

TINY = preset("tiny", layers=2, mtp=0) | {"n_routed_experts": 8, "max_position_embeddings": 128}
PLAIN = ("--compile", "off", "--head", "none")
