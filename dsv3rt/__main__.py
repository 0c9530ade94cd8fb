"""The `dsv3rt` command, also as `python -m dsv3rt`. Ctrl-C ends it silently from the first import on."""

from __future__ import annotations

from typing import NoReturn

from dsv3rt.cli.interrupt import ctrl_c_leaves


def main() -> NoReturn:
    """The console script."""
    with ctrl_c_leaves():
        from dsv3rt.cli.main import main as command_line
    command_line()


if __name__ == "__main__":
    main()
