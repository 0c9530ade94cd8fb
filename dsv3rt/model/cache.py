"""Views of caches.

Legend: S cache capacity.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dsv3rt.interfaces import Cache

SMALLEST_WINDOW = 256


def reads_only_used(blocks: Sequence[nn.Module]) -> bool:
    """Whether every block's attention touches nothing of its cache past the newest token."""
    return all(bool(getattr(block.self_attn, "reads_only_used", False)) for block in blocks)


def window(caches: Sequence[Cache], used: int) -> list[Cache]:
    """The caches, cut to a power of two that holds `used` tokens: few shapes, and no more work than that."""
    size = max(SMALLEST_WINDOW, 1 << (used - 1).bit_length())
    return [tuple(part[:, :size] for part in cache) for cache in caches]
