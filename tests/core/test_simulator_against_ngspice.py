"""Front-end and skin beside ngspice, which solves the same circuits under the same events by its own methods.

The measure: largest difference of a signal over its largest magnitude, over all ends of sample periods of
0.1 ms, jumps included. Signals are the current out of the stage, the voltage at the pads and over either site. The
simulator takes sub-steps of 1 us here; docs/simulator.md has its error at the sub-steps of the virtual device too.
"""

from dataclasses import replace

import pytest

from ionto_rt.core.skin import Skin
from ngspice import ngspice
from simulator_circuits import CIRCUITS, Circuit, deviation, in_ngspice, in_simulator, ladder_parts

BOUND = 0.005
FINE_SUBSTEPS = 100


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    try:
        ngspice()
    except OSError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("circuit", CIRCUITS, ids=[circuit.name for circuit in CIRCUITS])
def test_it_agrees_with_ngspice(circuit: Circuit) -> None:
    found = deviation(in_simulator(circuit, FINE_SUBSTEPS), in_ngspice(circuit))
    print(f"\n{circuit.name}: " + ", ".join(f"{name} {100 * value:.3f} %" for name, value in found.items()))
    assert {"source_a", "voltage_v"} <= set(found)
    assert max(found.values()) < BOUND


def test_there_are_ten_circuits_at_least_and_each_has_a_name_of_its_own() -> None:
    assert len({circuit.name for circuit in CIRCUITS}) == len(CIRCUITS) >= 10


@pytest.mark.parametrize("circuit", [CIRCUITS[0], CIRCUITS[6]], ids=["current source", "voltage source"])
def test_the_measure_sees_one_percent_of_the_drive(circuit: Circuit) -> None:
    other = replace(circuit, drive=tuple((time_s, 1.01 * value) for time_s, value in circuit.drive))
    assert max(deviation(in_simulator(other, FINE_SUBSTEPS), in_ngspice(circuit)).values()) > BOUND


def test_the_ladder_that_ngspice_runs_is_the_simulators() -> None:
    rest_f, branches = ladder_parts()
    own_rest_f, own_branches = Skin(cpe_exponent=0.85).ladder
    assert own_rest_f == pytest.approx(rest_f, rel=1e-9)
    for own, other in zip(own_branches, branches, strict=True):
        assert own == pytest.approx(other, rel=1e-9)
