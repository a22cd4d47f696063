"""Rules of the house that a reader cannot check by eye: what the tick compiles to, who knows whom, what is promised."""

import ctypes
import ctypes.util
import importlib
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from Cython.Build import cythonize
from setuptools import Extension

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "src/ionto_rt/core"
STAGES = [
    "wire", "impedance", "contact_area", "recursive", "programme",
    "regulator", "guard", "guard_estimates", "ledger",
]
BARE_REGULATOR = {
    "predictive": {"types", "elementary"},
    "probe": {"types", "elementary"},
    "constant_current": {"types", "predictive", "probe"},
}
"""Modules of the bare regulator, and the others of the core that each knows."""
ALTERNATIVES = {"prbs": {"types", "elementary", "impedance"}}
"""Stages that a tick may have instead of another, and the modules that each knows."""
TICK = [*STAGES, *BARE_REGULATOR, *ALTERNATIVES, "controller"]
PUBLIC = ["regulator", *BARE_REGULATOR]
SNAPSHOT = Path(__file__).parent / "regulator_interface.json"

# Results that are the same on every processor: exact, or correctly rounded.
EXACT_MATHEMATICS = {"sqrt", "fabs", "floor", "ceil", "trunc", "rint", "copysign", "frexp", "ldexp", "modf"}
FAST_MATHEMATICS = re.compile(r"-ffast-math|-Ofast|-funsafe-math|-ffinite-math-only|-fassociative-math")


def tracked_files() -> Iterator[Path]:
    """Files of the project: not built, not downloaded."""
    skipped = {".git", ".venv", ".hypothesis", ".benchmarks", "build", "dist", "sessions", "__pycache__", "htmlcov"}
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in skipped and not name.endswith(("_cache", ".egg-info"))]
        yield from (
            Path(folder) / name
            for name in files
            if name != ".git" and not name.endswith((".so", ".png", ".pyc", ".arrows", ".sqlite"))
        )


def declared_nogil(module: str) -> set[str]:
    """Names of the functions of a module that promise to need no GIL and to raise nothing."""
    text = (ROOT / "ext" / f"{module}.pyx").read_text() + (CORE / f"{module}.pxd").read_text()
    return set(re.findall(r"^cdef [^\n(]*?(\w+)\((?:[^()]|\([^()]*\))*\) noexcept nogil", text, re.M))


@pytest.fixture(scope="session")
def translated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The C that Cython makes of each module of the tick, by the directives of the real build."""
    folder = tmp_path_factory.mktemp("translated")
    directives = runpy.run_path(str(ROOT / "setup.py"), run_name="settings")["DIRECTIVES"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        modules = cythonize(
            [Extension(f"ionto_rt.core.{name}", [f"ext/{name}.pyx"]) for name in TICK],
            include_path=["src"],
            build_dir=str(folder),
            compiler_directives=directives,
            force=True,
            quiet=True,
        )
        return {module.name.rsplit(".", 1)[1]: Path(module.sources[0]).read_text() for module in modules}


def bodies(code: str, module: str) -> dict[str, str]:
    """Bodies of the C functions of a module, by their name in Cython; of a fused one all together."""
    found: dict[str, str] = {}
    name = rf"\b(?:__pyx_fuse_\d+)?__pyx_f_8ionto_rt_4core_\d+{module}_(\w+)"
    for match in re.finditer(rf"^static [^;{{}}\n]*{name}\([^;{{]*\) \{{\n(.*?)^\}}", code, re.M | re.S):
        found[match[1]] = found.get(match[1], "") + match[2]
    return found


@pytest.mark.parametrize("module", TICK)
def test_no_function_of_the_tick_touches_the_interpreter(module: str, translated: dict[str, str]) -> None:
    found = bodies(translated[module], module)
    promised = declared_nogil(module)
    assert promised, f"{module} has no nogil function"
    assert promised <= set(found)
    for name in promised:
        touched = set(re.findall(r"\b(?:\w*PyGILState\w*|__Pyx_\w+|Py[A-Z_]\w+)\b", found[name]))
        assert not touched, f"{module}.{name}: {sorted(touched)}"


@pytest.mark.parametrize("module", TICK)
def test_the_tick_allocates_nothing(module: str, translated: dict[str, str]) -> None:
    found = bodies(translated[module], module)
    for name in declared_nogil(module):
        assert not re.search(r"\b(?:malloc|calloc|realloc|free|printf|fopen|open|write|read)\(", found[name]), name


def test_the_search_finds_a_function_that_takes_the_gil(tmp_path: Path) -> None:
    source = tmp_path / "probe.pyx"
    source.write_text("cdef double f(double[:] x) noexcept nogil:\n    assert x[0] > 0\n    return x[0]\n")
    (module,) = cythonize([Extension("ionto_rt.core.probe", [str(source)])], language_level=3, quiet=True)
    assert "PyGILState_Ensure" in bodies(Path(module.sources[0]).read_text(), "probe")["f"]


def symbols(library: Path, which: str) -> set[str]:
    listing = subprocess.run(["nm", "-D", which, str(library)], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].split("@")[0] for line in listing.splitlines()}


def mathematical_library() -> set[str]:
    """Every function of libm."""
    name = ctypes.util.find_library("m")
    assert name
    ctypes.CDLL(name)
    maps = Path("/proc/self/maps").read_text()
    path = next(line.split()[-1] for line in maps.splitlines() if re.search(r"/libm[.-]", line))
    return symbols(Path(path), "--defined-only")


@pytest.mark.parametrize("module", TICK)
def test_the_tick_calls_no_mathematics_that_differs_between_processors(module: str) -> None:
    library = Path(str(importlib.import_module(f"ionto_rt.core.{module}").__file__))
    assert {"exp", "sin", "pow", "log"} <= mathematical_library()
    assert symbols(library, "--undefined-only") & mathematical_library() <= EXACT_MATHEMATICS


def test_no_build_file_asks_for_fast_mathematics() -> None:
    builds = [path for path in tracked_files() if path.name in {"setup.py", "Makefile", "pyproject.toml", "run"}]
    assert ROOT / "setup.py" in builds
    for path in builds:
        assert not FAST_MATHEMATICS.search(path.read_text()), path


def test_importing_the_core_leaves_subnormal_numbers_alone() -> None:
    names = [f"ionto_rt.core.{path.stem}" for path in (ROOT / "ext").glob("*.pyx")]
    program = f"import {', '.join(names)}; print(5e-324 * 2)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "1e-323"


def core_sources() -> list[Path]:
    return [*(ROOT / "ext").glob("*.pyx"), *(ROOT / "ext").glob("*.pxd"), *CORE.glob("*.p*")]


def imported_modules(path: Path) -> set[str]:
    """Modules of ionto_rt that a source imports or cimports."""
    return set(re.findall(r"^\s*(?:from|import|cimport)\s+(ionto_rt[\w.]*)", path.read_text(), re.M))


def test_the_core_knows_nothing_of_the_python_layer() -> None:
    assert len(core_sources()) > len(TICK)
    for path in core_sources():
        outside = {name for name in imported_modules(path) if not name.startswith("ionto_rt.core")}
        assert not outside, f"{path.relative_to(ROOT)}: {outside}"
        assert not re.search(r"^\s*from\s+\.\.", path.read_text(), re.M), path


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_knows_only_the_shared_types_and_arithmetic(stage: str) -> None:
    known = imported_modules(ROOT / "ext" / f"{stage}.pyx") | imported_modules(CORE / f"{stage}.pxd")
    # stops is a question that is answered when a stage is compiled, and no stage.
    shared = {"ionto_rt.core.types", "ionto_rt.core.elementary", "ionto_rt.core.stops"}
    assert known <= shared | {f"ionto_rt.core.{stage}"}


@pytest.mark.parametrize("module", BARE_REGULATOR)
def test_the_bare_regulator_knows_nothing_of_treatments(module: str) -> None:
    known = imported_modules(ROOT / "ext" / f"{module}.pyx") | imported_modules(CORE / f"{module}.pxd")
    assert known <= {f"ionto_rt.core.{name}" for name in {module, *BARE_REGULATOR[module]}}


@pytest.mark.parametrize("module", ALTERNATIVES)
def test_an_alternative_knows_the_stage_that_it_stands_for(module: str) -> None:
    known = imported_modules(ROOT / "ext" / f"{module}.pyx") | imported_modules(CORE / f"{module}.pxd")
    assert known <= {f"ionto_rt.core.{name}" for name in {module, *ALTERNATIVES[module]}}


def test_every_module_of_the_core_has_its_declarations_and_stubs() -> None:
    for path in (ROOT / "ext").glob("*.pyx"):
        seen_by_python = re.search(r"^(def|cdef class) ", path.read_text(), re.M)
        assert not seen_by_python or (CORE / f"{path.stem}.pyi").is_file(), f"{path.stem} has no stub"
        assert (CORE / f"{path.stem}.pxd").is_file() or "cdef class" not in path.read_text()


def test_no_file_names_a_machine() -> None:
    places = re.compile(r"/(?:root|work|home|Users|opt)/\w" + "|" + r"py" + r"pi\.org|python" + r"hosted")
    for path in tracked_files():
        found = places.search(path.read_text(errors="replace"))
        assert not found or path == Path(__file__), f"{path.relative_to(ROOT)}: {found and found[0]}"


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_regulators_declare_no_class(module: str) -> None:
    assert not re.search(r"^\s*cdef class", (CORE / f"{module}.pxd").read_text(), re.M)


def interface_of_the_regulators() -> dict[str, dict[str, Any]]:
    """C signatures as the import machinery of an embedder checks them, and the fields of the structs in order."""
    api = {}
    for module in PUBLIC:
        api.update(importlib.import_module(f"ionto_rt.core.{module}").__pyx_capi__)
    name_of = ctypes.pythonapi.PyCapsule_GetName
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    functions = {name: name_of(capsule).decode() for name, capsule in sorted(api.items())}
    structs = {}
    for module, which in [("types", "RegulatorTerms"), *((module, r"\w+") for module in PUBLIC)]:
        text = (CORE / f"{module}.pxd").read_text()
        for name, block in re.findall(rf"^cdef struct ({which}):\n((?:    .*\n|\n)+)", text, re.M):
            structs[name] = re.findall(r"^    (\w+ \w+(?:\[\w+\])?)", block, re.M)
    return {"functions": functions, "structs": structs}


def test_an_embedder_built_against_the_snapshot_still_fits() -> None:
    """Fields and functions are appended, never changed or moved."""
    snapshot, present = json.loads(SNAPSHOT.read_text()), interface_of_the_regulators()
    assert snapshot["functions"].items() <= present["functions"].items()
    for name, fields in snapshot["structs"].items():
        assert present["structs"][name][: len(fields)] == fields, name
    assert present == snapshot, "something was added: take it into the snapshot with python tests/test_source.py"


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(interface_of_the_regulators(), indent=2) + "\n")
