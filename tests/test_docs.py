"""What the pages say exists does: links, make targets, commands and their options, the treatment in the README."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cli_support import ionto, sessions

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")])
IDS = [path.relative_to(ROOT).as_posix() for path in PAGES]


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def command_lines(page: Path) -> list[list[str]]:
    """The words of every ionto-rt command on a page, in code spans and indented or fenced code alike."""
    text = re.sub(r"\s#.*", "", page.read_text())
    return [line.split() for line in re.findall(r"(?<![\w/.-])ionto-rt((?: +[\w./:*=-]+)*)", text)]


def help_of(*words: str) -> str:
    program = "import sys; from ionto_rt.cli import main; sys.argv[0] = 'ionto-rt'; main()"
    command = [sys.executable, "-c", program, *words, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def commands() -> set[str]:
    listed = re.search(r"^Commands:\n((?:  .*\n?)+)", help_of(), re.M)
    assert listed
    return set(re.findall(r"^  ([a-z][\w-]*)", listed[1], re.M))


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"(?:^    |`)make ([a-z]+)", page.read_text(), re.M))
    assert named <= targets


def test_every_target_with_a_description_is_listed_by_make() -> None:
    listing = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True).stdout
    described = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"^  make ([a-z]+)", listing, re.M)) == described
    assert {"demo", "test"} <= described


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_and_their_options_exist(page: Path) -> None:
    pytest.importorskip("ionto_rt.cli")
    for words in command_lines(page):
        if words and not words[0].startswith("-"):
            assert words[0] in commands(), words
            options = {word.split("=")[0] for word in words[1:] if word.startswith("--")}
            assert options <= set(re.findall(r"--[a-z][a-z-]*", help_of(words[0]))), words


def test_the_readme_names_every_command() -> None:
    pytest.importorskip("ionto_rt.cli")
    table = set(re.findall(r"^\| `ionto-rt ([\w-]+)", (ROOT / "README.md").read_text(), re.M))
    assert table == commands()


def test_the_treatment_in_the_readme_is_the_example() -> None:
    block = re.search(r"^```toml\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert block
    assert tomllib.loads(block[1]) == tomllib.loads((ROOT / "examples/dexamethasone-40.toml").read_text())


def test_the_readme_names_the_files_of_a_record() -> None:
    record = pytest.importorskip("ionto_rt.record")
    table = set(re.findall(r"^\| `([\w.]+\.\w+)` \|", (ROOT / "README.md").read_text(), re.M))
    names = (
        "TREATMENT",
        "SESSION",
        "TELEMETRY",
        "RECOVERED_TELEMETRY",
        "TELEMETRY_CHAIN",
        "EVENTS",
        "MANIFEST",
        "RECEIPT",
        "LATENCY",
    )
    assert table == {getattr(record, name) for name in names}


def test_the_tutorial_s_lines_on_a_record_print_what_it_says(tmp_path: Path) -> None:
    pytest.importorskip("polars")
    words = ["run", ROOT / "examples" / "dexamethasone-40.toml", "--device", "sim:", "--speed", "max", "--json"]
    assert ionto(*words, cwd=tmp_path).code == 0
    (session,) = sessions(tmp_path / "sessions")
    text = (ROOT / "docs" / "tutorial.md").read_text()
    program = re.search(r"```python\n(import polars.*?)```", text, re.S)
    assert program is not None
    done = subprocess.run([sys.executable, "-c", program[1]], cwd=session, capture_output=True, text=True, check=True)
    said = re.search(r"│ (\d\S+) +┆ (\d\S+) +│", done.stdout)
    assert said is not None and f"│ {said[1]}  ┆ {said[2]}    │" in text
    assert f"{session.joinpath('telemetry.arrows').stat().st_size / 1e6:.0f} MB" in (ROOT / "README.md").read_text()
