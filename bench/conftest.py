"""dsv3rt comes before torch here, as it does for users: it says how torch's threads wait, which torch reads when it
is loaded."""

from __future__ import annotations

import dsv3rt  # noqa: F401
