"""Building and loading a small library of one's own, as a plugin would."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from dsv3rt.native import build, load_library

SOURCE = """
#include "dsv3rt_native.h"
DSV3RT_LIBRARY_MAIN
namespace {
Tensor NAME(const Tensor& x, double factor, int64_t shift) {
  const float* from = x.floats("NAME wants contiguous float32");
  Tensor y = Tensor::empty(x.sizes(), x.dims(), dsv3rt::torch_api.float32);
  float* to = y.data<float>();
  const int64_t count = x.numel();
  dsv3rt::Tickets work, again;
  work.reset(count);
  again.reset(count);
  dsv3rt::parallel(4, count, [&](int64_t) {
    work.run([&](int64_t i) { to[i] = from[i] * static_cast<float>(factor); });
    work.wait();
    again.run([&](int64_t i) { to[i] += static_cast<float>(shift); });
  });
  return y;
}
}
DSV3RT_OPERATORS { DSV3RT_OP("NAME(Tensor x, float factor, int shift) -> Tensor", NAME); }
DSV3RT_EXPORT int32_t aoti_torch_cpu_NAME(dsv3rt::Handle x, double factor, int64_t shift, dsv3rt::Handle* y) {
  return dsv3rt::shim_call(y, [&] { return NAME(Tensor::borrow(x), factor, shift); });
}
"""
needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV3RT_CACHE", str(tmp_path / "cache"))


def written(folder: Path, name: str) -> Path:
    folder.mkdir()
    (folder / f"{name}.cpp").write_text(SOURCE.replace("NAME", name))
    return folder


@needs_compiler
def test_an_operator_of_ones_own(tmp_path: Path) -> None:
    library = load_library("mine", written(tmp_path / "src", "test_scale_shift"))
    assert library is not None and library.path.parent == tmp_path / "cache" / "kernels"
    x = torch.randn(3, 500)
    assert torch.equal(torch.ops.dsv3rt.test_scale_shift(x, 2.0, -1), x * 2 - 1)
    with pytest.raises(RuntimeError, match="wants contiguous float32"):
        torch.ops.dsv3rt.test_scale_shift(x.T, 2.0, 1)


@needs_compiler
def test_the_crew_serves_one_caller_and_lets_the_others_work_alone(tmp_path: Path) -> None:
    """Few items go to the crew (dsv3rt_crew.h): asked by several threads at once, without pause and after naps."""
    load_library("crew", written(tmp_path / "src", "test_crew"))

    def caller(seed: int) -> bool:
        x = torch.arange(16.0) + seed
        right = True
        for turn in range(2000):
            right = right and torch.equal(torch.ops.dsv3rt.test_crew(x, 3.0, turn), x * 3 + turn)
            if turn % 500 == 0:
                time.sleep(0.01)
        return right

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(caller, range(3)))


@needs_compiler
@pytest.mark.slow
def test_aot_packages_call_operators_directly(tmp_path: Path) -> None:
    """A packaged graph gives what the operator gives, through the C function of the library."""
    from dsv3rt.native import c_shims

    load_library("packed", written(tmp_path / "src", "test_packed"))
    operator = torch.ops.dsv3rt.test_packed
    torch.library.register_fake("dsv3rt::test_packed", lambda x, factor, shift: torch.empty_like(x))
    shims = c_shims()
    assert "aoti_torch_cpu_test_packed(AtenTensorHandle x, double factor, int64_t shift" in shims[operator.default][0]

    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return operator(operator(x, 2.0, 1) + 1, 0.5, 3)  # type: ignore[no-any-return]

    x = torch.randn(4, 8)
    with torch.no_grad(), torch._inductor.config.patch({"aot_inductor.custom_ops_to_c_shims": shims}):
        program = torch.export.export(Twice(), (x,))
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "twice.pt2"))
        packed = torch._inductor.aoti_load_package(package)
        assert torch.equal(packed(x), Twice()(x))


@needs_compiler
def test_built_once_and_found_again(tmp_path: Path) -> None:
    source = build.NativeSource("again", written(tmp_path / "src", "test_again"))
    first = build.find_or_build(source)
    stamp = first.stat().st_mtime_ns
    assert build.find_or_build(source) == first and first.stat().st_mtime_ns == stamp
    (source.folder / "test_again.cpp").write_text(SOURCE.replace("NAME", "test_again") + "// changed\n")
    assert build.find_or_build(source) != first


@needs_compiler
def test_two_builders_at_once(tmp_path: Path) -> None:
    source = build.NativeSource("both", written(tmp_path / "src", "test_both"))
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(build.find_or_build, [source, source]))
    assert paths[0] == paths[1] and paths[0].exists()
    assert [path.name for path in paths[0].parent.iterdir()] == [paths[0].name]


BUILDER = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("build_alone", FILE)
build = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)
print(build.find_or_build(build.NativeSource(sys.argv[2], Path(sys.argv[1]))))
"""


def builder(folder: Path, name: str, **environment: str) -> subprocess.Popen[str]:
    """A process that builds the sources in `folder` as library `name`, and nothing else."""
    command = [sys.executable, "-c", BUILDER.replace("FILE", repr(build.__file__)), str(folder), name]
    pipe, settings = subprocess.PIPE, {**os.environ, **environment}
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=settings, start_new_session=True)


@needs_compiler
def test_two_processes_build_at_once_and_one_is_killed(tmp_path: Path) -> None:
    """Into a folder that is not there yet; what the killed one leaves goes when something is built next."""
    source, kernels = written(tmp_path / "src", "test_both"), tmp_path / "cache" / "kernels"
    first, second, killed = (builder(source, "both") for _ in range(3))
    while not list(kernels.glob(f".build-{killed.pid}-*")):
        assert killed.poll() is None
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    said = [process.communicate(timeout=240) for process in (first, second, killed)]
    built = next(kernels.glob("both-*.so"))
    assert said == [(f"{built}\n", ""), (f"{built}\n", ""), ("", "")]
    build.find_or_build(build.NativeSource("next", source))
    assert sorted(path.name[:5] for path in kernels.iterdir()) == ["both-", "next-"]


@needs_compiler
def test_a_cache_that_cannot_be_written_is_replaced_for_the_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    source = written(tmp_path / "src", "test_spare")
    place, errors = builder(source, "spare", DSV3RT_CACHE=str(tmp_path / "file"), TMPDIR=str(tmp_path)).communicate()
    assert len(errors.splitlines()) == 1 and f"{tmp_path}/file/kernels cannot be written" in errors
    assert place.startswith(f"{tmp_path}/dsv3rt-cache-") and not list(tmp_path.glob("dsv3rt-*"))


@needs_compiler
def test_a_prebuilt_library_is_preferred(tmp_path: Path) -> None:
    source = build.NativeSource("pre", written(tmp_path / "src", "test_pre"))
    prebuilt = build.prebuilt_path(source)
    prebuilt.parent.mkdir()
    prebuilt.write_bytes(b"")
    assert build.find_or_build(source) == prebuilt


@needs_compiler
def test_a_broken_source_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "broken.cpp").write_text("int main( {")
    with caplog.at_level(logging.WARNING):
        assert load_library("broken", tmp_path / "src") is None
    assert len(caplog.records) == 1 and "refused" in caplog.text and "\n" not in caplog.records[0].getMessage()


def test_without_a_compiler_torch_computes(tmp_path: Path) -> None:
    program = """
import importlib.util, pathlib, sys
# an installation may carry the kernels: hide them before anything asks
spec = importlib.util.spec_from_file_location("dsv3rt.native.build", BUILD)
build = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)
build.prebuilt_path = lambda source: pathlib.Path("/nowhere")
import torch
from dsv3rt import native
from dsv3rt_fp8 import native_ops
assert native_ops.library() is None and native.core_library() is None
print(native.rms_norm(torch.ones(2, 4), torch.ones(4), 0.0).sum().item(), native.read_bandwidth_gbs(8, 1) > 0)
"""
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {"PATH": str(tmp_path), "DSV3RT_CACHE": str(tmp_path / "cache"), "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", program.replace("BUILD", repr(build.__file__))],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "8.0 True\n", done.stderr
    warnings = [line for line in done.stderr.splitlines() if "native kernels" in line]
    assert len(warnings) == 1 and "no C++ compiler" in warnings[0]
