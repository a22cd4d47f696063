"""Rows in which something changed become what people read: by the state, and each change once."""

from ionto_rt.codes import EndReason, OperatorCommand
from ionto_rt.interpret import Interpreter
from support import Rig, changed, endless, planned


def told(rig: Rig) -> list[str]:
    reader = Interpreter()
    return [found.kind for row in rig.table() if row["events"] for found in reader.read(row)]


def losing_samples() -> Rig:
    config, _ = planned()
    rig = Rig(changed(config, guard={"gap_pause_ticks": 2, "gap_stop_ticks": 10}), endless(1e-3))
    rig.run(50)
    rig.tick(lose=3)
    rig.run(5000)
    return rig


def test_a_pause_that_begins_in_the_tick_of_a_resume_is_another_one() -> None:
    rig = losing_samples()
    rig.tick(lose=3, operator_command=OperatorCommand.RESUME, operator_sequence=1)
    assert rig.rows[-1]["pause_latched"]
    pauses = [kind for kind in told(rig) if kind.startswith("guard-pause")]
    assert pauses == ["guard-pause", "guard-pause-over", "guard-pause"]


def test_a_row_without_an_event_of_its_own_tells_what_has_become_of_those_that_are_missing() -> None:
    rig = losing_samples()
    rig.run(1, stop=2)
    rig.run(5)
    row = rig.table()[-1]
    assert not row["events"]
    found = {happening.kind: happening for happening in Interpreter().read(row)}
    assert {"trip", "guard-pause", "phase", "end"} <= set(found)
    assert found["trip"].fields["name"] == "OPERATOR_STOP"
    assert found["end"].fields["reason"] == EndReason(int(row["end_reason"])).name != "NONE"
