"""`dsv3rt cache`: the compiled graphs kept for the next start."""

from __future__ import annotations

import time

import click

from dsv3rt.cli.output import emit_json, json_option, size


@click.command("cache")
@click.argument("action", type=click.Choice(["list", "clear"]))
@json_option
def command(action: str, as_json: bool) -> None:
    """List or clear the compiled graphs that make the next start quick.

    They are kept in $DSV3RT_CACHE/graphs, else $XDG_CACHE_HOME/dsv3rt/graphs, else ~/.cache/dsv3rt/graphs, and what
    their compiler needs in `common` beside it. These folders may be removed at any time; what is needed is made again.

    \b
    dsv3rt cache list
    dsv3rt cache clear
    """
    import shutil

    from dsv3rt import cache_folder
    from dsv3rt.compile.store import COMMON, GraphStore

    store = GraphStore()
    if action == "clear":
        count, total = store.clear()
        shutil.rmtree(cache_folder.root() / COMMON, ignore_errors=True)
        if as_json:
            emit_json({"folder": str(store.folder), "removed": count, "bytes": total})
        else:
            click.echo(f"removed {count} graphs, {size(total)}", err=True)
        return
    entries = store.entries()
    if as_json:
        graphs = [
            {"key": entry.key, "module": entry.info.get("module"), "torch": entry.info.get("torch"),
             "bytes": entry.bytes, "last_used": entry.used}
            for entry in entries
        ]  # fmt: skip
        emit_json({"folder": str(store.folder), "limit_bytes": store.limit_bytes, "graphs": graphs})
        return
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        click.echo(f"{entry.key}  {used}  {size(entry.bytes):>8}  {entry.info.get('module', '?')}")
    bound = f"{size(sum(entry.bytes for entry in entries))} of at most {size(store.limit_bytes)}"
    click.echo(f"{len(entries)} graphs, {bound}, in {store.folder}", err=True)
