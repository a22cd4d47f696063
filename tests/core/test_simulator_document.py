"""docs/simulator.md carries what is computed, and names what there is."""

import re

import pytest

from ionto_rt.core.virtual_device import FAULT_VALUES
from ionto_rt.device import VIRTUAL_OPTIONS
from simulator_circuits import CIRCUITS
from simulator_tables import PAGE, TABLES, on_the_page

COMPUTED = [name for name in TABLES if name != "ngspice"]


def same(written: str, computed: str) -> bool:
    """Whether two cells agree: text exactly, numbers to one unit of their last digit."""
    written_numbers, computed_numbers = (re.findall(r"[+-]?\d+(?:\.\d+)?", cell) for cell in (written, computed))
    if re.sub(r"[+-]?\d+(?:\.\d+)?", "#", written) != re.sub(r"[+-]?\d+(?:\.\d+)?", "#", computed):
        return False
    return all(
        abs(float(a) - float(b)) <= 1.01 * 10.0 ** -len(a.partition(".")[2])
        for a, b in zip(written_numbers, computed_numbers, strict=True)
    )


@pytest.mark.parametrize("name", COMPUTED)
def test_the_page_carries_the_table_that_is_computed(name: str) -> None:
    remedy = "run: python tests/simulator_tables.py"
    written, computed = on_the_page(name), TABLES[name]()
    assert len(written) == len(computed), remedy
    for line, new in zip(written, computed, strict=True):
        cells, new_cells = line.split("|"), new.split("|")
        assert len(cells) == len(new_cells), remedy
        assert all(map(same, cells, new_cells)), f"{line}\n{new}\n{remedy}"


def test_the_page_lists_the_circuits_that_ngspice_is_given_and_none_misses_half_a_percent() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in on_the_page("ngspice")[2:]]
    assert [row[0] for row in rows] == [circuit.name for circuit in CIRCUITS]
    assert all(float(cell.removesuffix(" %")) < 0.5 for row in rows for cell in row[1:5] if cell)


def test_the_page_names_the_options_and_faults_of_the_skin() -> None:
    text = PAGE.read_text()
    options = set(re.findall(r"^\| `([a-z-]+)=[^`@]*`", text, re.M))
    assert options <= set(VIRTUAL_OPTIONS)
    assert {"cpe", "hydration", "electroporation", "sweat", "motion", "electrode-charge", "emf"} <= options
    faults = set(re.findall(r"^\| `([a-z-]+)=[^`]*@", text, re.M))
    assert faults >= set(FAULT_VALUES) - {"stall"}
