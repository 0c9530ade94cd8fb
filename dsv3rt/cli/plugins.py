"""`dsv3rt plugins`: what is installed, from where, what it offers, what failed and why."""

from __future__ import annotations

from typing import Any

import click

from dsv3rt.cli.output import emit_json, json_option


@click.command("plugins")
@click.option("--plugin", "files", multiple=True, metavar="FILE.py", help="Also this single-file plugin.")
@json_option
def command(files: tuple[str, ...], as_json: bool) -> None:
    """List the installed plugins: version, origin, what each registers, and which failed and why.

    \b
    dsv3rt plugins
    dsv3rt plugins --plugin my_router.py --json
    """
    from dsv3rt.plugin_manager import discover

    found = discover(files, warn=False)
    plugins: list[dict[str, Any]] = []
    for owner in found.owners:
        offers = {
            kind: sorted(offer.name for offer in offered if offer.owner == owner)
            for kind, offered in found.offers.items()
            if any(offer.owner == owner for offer in offered)
        }
        instance = found.manager.get_plugin(f"{owner.name}:{owner.source}")
        hooks = [caller.name for caller in found.manager.get_hookcallers(instance) or []]
        plugins.append(
            {
                "name": owner.name,
                "version": owner.version,
                "source": owner.source,
                "registers": offers,
                "hooks": sorted(
                    hook for hook in hooks if not hook.startswith("register_") or hook.endswith("commands")
                ),
            }
        )
    failures = [
        {"name": failed.owner.name, "version": failed.owner.version, "source": failed.owner.source,
         "reason": failed.reason}
        for failed in found.failures
    ]  # fmt: skip
    if as_json:
        emit_json({"plugins": plugins, "failures": failures})
        return
    for plugin in plugins:
        click.echo(f"{plugin['name']} {plugin['version']}  ({plugin['source']})")
        for kind, names in plugin["registers"].items():
            click.echo(f"    {kind}: {', '.join(names)}")
        if plugin["hooks"]:
            click.echo(f"    hooks: {', '.join(plugin['hooks'])}")
    for failed in failures:
        click.echo(f"{failed['name']} {failed['version']}  ({failed['source']})\n    failed: {failed['reason']}")
    if not plugins and not failures:
        click.echo("no plugins are installed")
