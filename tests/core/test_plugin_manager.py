"""Discovery: broken plugins cost one line, selected ones are errors that name who and what to do."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from dsv3rt import hookimpl
from dsv3rt.errors import PluginError
from dsv3rt.plugin_manager import REGISTERING_HOOKS, discover


def _install(folder: Path, name: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution with one module and one entry point, as pip would leave it."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[dsv3rt]\n{name} = {name}\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)


ROUTER = """
from dsv3rt import hookimpl
@hookimpl
def register_routing(register):
    register("{name}", lambda site: None)
"""


def test_builtin_plugins_are_found_through_entry_points_alone() -> None:
    found = discover()
    assert not found.failures
    assert "mla" in found.names("attention")
    assert {"bias_topk", "softmax_topk", "softmax_group_topk"} <= set(found.names("routing"))
    assert {"dense", "fp8_block"} <= set(found.names("quantization"))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_module", "no_such_module"),
        ("raise SystemError('boom')", "boom"),
        ("def broken(:", "SyntaxError"),
        (
            "from dsv3rt import hookimpl\n@hookimpl\ndef register_rooting(register): ...",
            "did you mean register_routing?",
        ),
        (
            "from dsv3rt import hookimpl\n@hookimpl\ndef register_routing(register): raise ValueError('half way')",
            "half way",
        ),
    ],
)
def test_a_broken_plugin_nobody_selected_is_one_warning(
    code: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, "broken_plugin", code, monkeypatch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = discover()
    lines = [str(warning.message) for warning in caught]
    assert len(lines) == 1 and "\n" not in lines[0]
    assert "broken_plugin 1.2" in lines[0] and reason in lines[0]
    assert "mla" in found.names("attention"), "the others still work"
    with pytest.raises(PluginError, match=r"broken_plugin 1\.2"):
        found.find("routing", "its_router")


def test_a_half_registered_plugin_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = ROUTER.format(name="early") + "@hookimpl\ndef register_head(register): raise ValueError('late')\n"
    _install(tmp_path, "half_plugin", code, monkeypatch)
    found = discover(warn=False)
    assert "early" not in found.names("routing")
    assert [failure.owner.name for failure in found.failures] == ["half_plugin"]


def test_a_name_claimed_twice_is_an_error_that_names_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first_plugin", "second_plugin"):
        _install(tmp_path, name, ROUTER.format(name="same"), monkeypatch)
    found = discover()
    with pytest.raises(PluginError, match=r"first_plugin 1\.2 .* and second_plugin 1\.2 .*uninstall one"):
        found.find("routing", "same")
    found.find("routing", "bias_topk")


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(PluginError, match=r"did you mean 'bias_topk'\?"):
        discover().find("routing", "bias_topc")
    with pytest.raises(PluginError, match=r"known: .*mla"):
        discover().find("attention", "zzz")


@pytest.mark.parametrize("code", ["import no_such_module", "def broken(:", "1/0"])
def test_a_broken_file_given_by_name_is_an_error(code: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(code)
    with pytest.raises(PluginError, match=r"mine\.py does not load"):
        discover([file])


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="does not load"):
        discover([tmp_path / "absent.py"])


def test_objects_can_be_plugins() -> None:
    class Mine:
        @hookimpl
        def register_routing(self, register: Callable[[str, object], None]) -> None:
            register("from_object", lambda site: None)

    assert "from_object" in discover([Mine()]).names("routing")


def test_every_hook_is_a_known_one() -> None:
    """hookspecs.py, the names the manager checks, and this list are the same."""
    from dsv3rt import hookspecs

    specs = {name for name in vars(hookspecs) if name.startswith("register_")} | {"plan_resolved", "model_assembled"}
    assert specs == set(REGISTERING_HOOKS.values()) | {"register_commands", "plan_resolved", "model_assembled"}
    for name in specs:
        assert getattr(hookspecs, name).__doc__, f"{name} is not documented"


def test_every_hook_is_on_the_plugin_page() -> None:
    page = (Path(__file__).parents[2] / "plugins" / "README.md").read_text()
    from dsv3rt import hookspecs

    for name, value in vars(hookspecs).items():
        if hasattr(value, "dsv3rt_spec"):
            assert f"`{name}(" in page, f"{name} is not documented in plugins/README.md"
