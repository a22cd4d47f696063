"""What leaves the house: the sdist, the wheel made of it, an editable install; and a stranger's host built on each.

Nothing is downloaded. A fresh environment finds the requirements through the environment that runs the tests, and the
package itself only through its own install. Extensions are built without optimisation: what counts here is what is in
the archives and whether it works.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYX = [*(ROOT / "ext").glob("*.pyx"), *(ROOT / "examples/embedding").glob("*.pyx")]
MODULES = sorted(path.stem for path in (ROOT / "ext").glob("*.pyx"))
PACKAGE_DATA = (".pxd", ".pyi", ".typed", ".toml", ".html", ".h")
NOT_SHIPPED = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "sessions", "*.egg-info", "*.so", "__pycache__",
    ".*_cache", ".hypothesis", ".bench*"
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Standard output of a command that must succeed; it sees neither this source tree nor its build switches."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "IONTO_RT_"))}
    environment |= {"IONTO_RT_OPTIMIZE": "-O0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1"} | variables
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass
class Environment:
    """A virtual environment with the package in it, outside the source tree."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin/python"

    @property
    def site_packages(self) -> Path:
        return Path(sysconfig.get_path("purelib", "venv", {"base": str(self.folder)}))

    @classmethod
    def create(cls, folder: Path, *install: str | Path) -> "Environment":
        run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
        made = cls(folder)
        requirements = made.site_packages / "requirements.pth"
        requirements.write_text(sysconfig.get_path("purelib") + "\n")
        run(
            *(made.python, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--ignore-installed", *install),
            cwd=folder.parent,
        )
        return made

    def package(self) -> Path:
        """Where `import ionto_rt` finds it, seen from outside the source tree."""
        place = run(self.python, "-c", "import ionto_rt; print(ionto_rt.__file__)", cwd=self.folder)
        return Path(place.strip()).parent


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, folder / "checkout", ignore=NOT_SHIPPED)
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, cwd=folder / "checkout")
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def source(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, unpacked."""
    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return unpacked


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, cwd=source)
    (archive,) = folder.glob("*.whl")
    return archive


@pytest.fixture(scope="module")
def from_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment.create(tmp_path_factory.mktemp("from_wheel") / "venv", wheel)


@pytest.fixture(scope="module")
def editable(source: Path, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Depends on the wheel for its order: the translated C of the one build serves the other."""
    return Environment.create(tmp_path_factory.mktemp("editable") / "venv", "--editable", source)


def package_files() -> set[str]:
    """Every file of the Python package that is no build product, as it is named in a wheel."""
    files = (path for path in (ROOT / "src/ionto_rt").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT / "src").as_posix() for path in files if path.suffix != ".so"}


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    compiled = {f"ionto_rt/core/{module}{suffix}" for module in MODULES}
    assert names == package_files() | compiled
    assert {"ionto_rt/py.typed", "ionto_rt/include/ionto_rt/daq.h"} <= names
    assert {Path(name).suffix for name in names} <= {".py", ".so", *PACKAGE_DATA}


def test_the_wheel_is_licensed_and_brings_its_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name.split(".dist-info/")[1]: name for name in archive.namelist() if ".dist-info/" in name}
        assert b"Apache License" in archive.read(names["licenses/LICENSE"])
        assert b"License-Expression: Apache-2.0" in archive.read(names["METADATA"])
        assert b"ionto-rt = ionto_rt.cli:main" in archive.read(names["entry_points.txt"])


def test_the_sdist_holds_the_sources_and_no_build_product(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {f"ext/{module}.pyx" for module in MODULES} <= names
    assert {f"src/{name}" for name in package_files()} <= names
    assert {"LICENSE", "README.md", "Makefile", "tests/test_packaging.py", "docs/wire-protocol.md"} <= names
    assert {f"examples/daq/{name}" for name in ("vendor.c", "adapter.c", "host.py", "treatment.toml")} <= names
    translated = {f"{folder}/{source.stem}.c" for folder in ("ext", "examples/embedding") for source in PYX}
    assert not names & translated
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]


def build_host(environment: Environment, folder: Path) -> dict[str, float]:
    """Builds examples/embedding as its README says and runs it; its result."""
    shutil.copytree(ROOT / "examples/embedding", folder, ignore=NOT_SHIPPED)
    run(environment.python, "setup.py", "-q", "build_ext", "--inplace", cwd=folder)
    program = "import host, json; print(json.dumps(host.hold(0.002)))"
    result: dict[str, float] = json.loads(run(environment.python, "-c", program, cwd=folder))
    return result


def test_a_stranger_builds_a_host_on_the_wheel(from_wheel: Environment, tmp_path: Path) -> None:
    assert from_wheel.package().is_relative_to(from_wheel.folder)
    held = build_host(from_wheel, tmp_path / "host")
    assert held["current_a"] == pytest.approx(0.002, rel=1e-12)
    assert held["peak_a"] <= 0.00202


def test_a_stranger_builds_the_same_host_on_an_editable_install(
    editable: Environment, from_wheel: Environment, source: Path, tmp_path: Path
) -> None:
    assert editable.package() == source / "src/ionto_rt"
    assert build_host(editable, tmp_path / "one") == build_host(from_wheel, tmp_path / "two")


def test_a_stranger_compiles_an_adapter_on_the_wheels_header(from_wheel: Environment, tmp_path: Path) -> None:
    folder = run(from_wheel.python, "-c", "import ionto_rt; print(ionto_rt.get_include())", cwd=tmp_path).strip()
    assert Path(folder).is_relative_to(from_wheel.folder)
    for name in ("adapter.h", "adapter.c", "vendor.h"):
        shutil.copy(ROOT / "examples/daq" / name, tmp_path)
    run("cc", "-std=c11", "-D_GNU_SOURCE", "-I", folder, "-c", "adapter.c", cwd=tmp_path)


def test_a_host_built_for_another_signature_is_refused_when_imported(from_wheel: Environment, tmp_path: Path) -> None:
    """The reason why the public interface is functions and structs, and no class."""
    declarations = tmp_path / "ionto_rt/core"
    shutil.copytree(from_wheel.package() / "core", declarations, ignore=shutil.ignore_patterns("*.so", "*.py*"))
    for folder in (declarations, declarations.parent):
        (folder / "__init__.pxd").touch()
    public = declarations / "regulator.pxd"
    text = public.read_text()
    assert "void regulator_reset(RegulatorState* state, double output)" in text
    public.write_text(text.replace("reset(RegulatorState* state, double", "reset(RegulatorState* state, float"))
    (tmp_path / "old.pyx").write_text(
        "from ionto_rt.core.regulator cimport RegulatorState, regulator_reset\n"
        "cdef RegulatorState state\nregulator_reset(&state, 0.0)\n"
    )
    run(from_wheel.python, "-m", "cython", "-3", "-I", tmp_path, "old.pyx", cwd=tmp_path)
    (tmp_path / "setup.py").write_text(
        "from setuptools import Extension, setup\nsetup(name='old', ext_modules=[Extension('old', ['old.c'])])\n"
    )
    shutil.rmtree(declarations.parent)
    run(from_wheel.python, "setup.py", "-q", "build_ext", "--inplace", cwd=tmp_path)
    program = "try:\n    import old\nexcept TypeError as error:\n    print(error)"
    assert "regulator_reset has wrong signature" in run(from_wheel.python, "-c", program, cwd=tmp_path)
