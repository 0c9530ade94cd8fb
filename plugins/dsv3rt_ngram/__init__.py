"""Head slot: prompt lookup. Drafts by finding the newest tokens earlier in the text; needs no weights."""

from __future__ import annotations

from collections.abc import Callable

from dsv3rt import hookimpl
from dsv3rt.interfaces import HeadBuilder
from dsv3rt_ngram.head import NgramHead


@hookimpl
def register_head(register: Callable[[str, HeadBuilder], None]) -> None:
    register("ngram", NgramHead)
