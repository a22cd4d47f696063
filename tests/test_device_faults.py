"""Every fault of the virtual device that a hazard needs, by its truth: what flows, what it says, and that it ends."""

import itertools
import re
from pathlib import Path

import pytest

from ionto_rt.cli.devices import VIRTUAL_HELP
from ionto_rt.codes import DeviceStatus
from ionto_rt.core.virtual_device import DEVICE_FAULTS, FAULT_KINDS, FAULT_OFF, FAULT_VALUES, OFF
from ionto_rt.virtual_device import SimPort, parse_fault
from test_virtual_channels import Client
from test_virtual_device import Host, Sample, sim

SIMULATOR = Path(__file__).parent.parent / "docs" / "simulator.md"
LOAD = (1000.0, 2000.0, 1e-7)
CODE_A = 1.3 * 4e-3 / 32768


def start(*faults: str, **options: object) -> tuple[Host, SimPort, Sample]:
    """A device on a dummy load without noise or errors of its output, armed."""
    options = {"load": LOAD, "noise_codes": 0.0, "dac_gain_error": 0.0, "dac_offset_codes": 0.0, **options}
    host, port = sim(faults=faults, **options)
    return host, port, host.start()


def run(host: Host, sample: Sample, periods: int, code: int = 6000) -> list[Sample]:
    seen = []
    for _ in range(periods):
        sample = host.step(sample, code=code)
        seen.append(sample)
    return seen


def amperes(host: Host, sample: Sample) -> tuple[float, float]:
    """Both current readings, by the hello's calibration."""
    one = host.used
    return (
        (sample.current - one["current_offset_q16"] / 65536) * one["current_lsb_fa"] * 1e-15,
        (sample.redundant - one["redundant_offset_q16"] / 65536) * one["redundant_lsb_fa"] * 1e-15,
    )


def test_every_fault_is_in_the_help_and_on_the_page() -> None:
    shown = set(re.findall(r"[a-z]+(?:-[a-z0-9]+)*(?=[=@])", VIRTUAL_HELP["fault"]))
    assert shown >= set(FAULT_KINDS)
    page = set(re.findall(r"`([a-z-]+)(?:=[^`@]*)?@", SIMULATOR.read_text()))
    assert page >= set(FAULT_KINDS)
    assert set(FAULT_OFF) | set(FAULT_VALUES) | set(DEVICE_FAULTS) <= set(FAULT_KINDS)


def test_what_can_be_ended_is_ended_by_off() -> None:
    for kind in FAULT_OFF:
        assert parse_fault(f"{kind}=off@2") == (kind, OFF, 2.0)
    for kind in set(FAULT_KINDS) - set(FAULT_OFF):
        with pytest.raises(ValueError, match="is not understood"):
            parse_fault(f"{kind}=off@2")
    assert parse_fault("dac=-50@1") == ("dac", -50.0, 1.0)


@pytest.mark.parametrize("kind", sorted(set(FAULT_KINDS) - {"unplug", "stall", "flood", "repeat", "replayed"}))
def test_a_fault_that_has_come_and_gone_leaves_the_device_serving(kind: str) -> None:
    value = f"={FAULT_VALUES[kind][1]}" if kind in FAULT_VALUES else ""
    gone = [f"{kind}=off@0.1"] if kind in FAULT_OFF else []
    host, port, sample = start(f"{kind}{value}@0.05", *gone, channels=1)
    indices = []
    for _ in range(200):
        sample = host.pass_over() if port.device.phase != "armed" else host.step(sample, code=1000)
        indices.append(sample.index)
    assert indices == list(range(1, 201))


@pytest.mark.parametrize("kind", ["dac", "dac-told"])
@pytest.mark.parametrize("front_end", ["current", "voltage"])
def test_h20_a_stuck_converter_drives_what_it_likes_and_says_so_or_not(kind: str, front_end: str) -> None:
    host, port, sample = start(f"{kind}=60@0.1", f"{kind}=off@0.12", front_end=front_end, load=(9000.0, 1e3, 1e-9))
    sample = run(host, sample, 99)[-1]
    set_a = port.device.current_a
    sample = run(host, sample, 15)[-1]
    stuck = int(0.6 * host.used["output_code_max"])
    assert sample.applied == (6000 if kind == "dac" else stuck)
    assert port.device.current_a == pytest.approx(set_a * stuck / 6000, rel=0.01)
    sample = run(host, sample, 25)[-1]
    assert port.device.current_a == pytest.approx(set_a, rel=1e-6)
    assert sample.applied == 6000


def test_h20_a_converter_that_keeps_its_value_says_so_or_not() -> None:
    for kind, echo in (("stuck", 2000), ("stuck-told", 6000)):
        host, port, sample = start(f"{kind}@0.05", f"{kind}=off@0.1")
        sample = run(host, sample, 60)[-1]
        sample = run(host, sample, 20, code=2000)[-1]
        assert (sample.applied, port.device.current_a) == (echo, pytest.approx(6000 * CODE_A, rel=1e-3))
        sample = run(host, sample, 30, code=2000)[-1]
        assert (sample.applied, port.device.current_a) == (2000, pytest.approx(2000 * CODE_A, rel=1e-3))


@pytest.mark.parametrize(("which", "flat"), [(1, (True, False)), (2, (False, True)), (3, (True, True))])
def test_h22_a_flat_reading_has_no_noise_and_does_not_follow(which: int, flat: tuple[bool, bool]) -> None:
    host, port, sample = start(f"adc-flat={which}@0.05", "adc-flat=off@0.15", noise_codes=2.0)
    seen = run(host, run(host, sample, 60)[-1], 80, code=3000)
    for number, name in enumerate(("current", "redundant")):
        assert (len({getattr(one, name) for one in seen}) == 1) is flat[number]
    assert port.device.current_a == pytest.approx(3000 * CODE_A, rel=1e-3)
    seen = run(host, seen[-1], 60, code=3000)
    assert amperes(host, seen[-1]) == pytest.approx((3000 * CODE_A,) * 2, rel=5e-3)


@pytest.mark.parametrize(("kind", "factors"), [("adc-gain", (1.05, 1.0)), ("adc-gain-redundant", (1.0, 1.05))])
def test_h23_one_reading_is_wrong_by_its_gain(kind: str, factors: tuple[float, float]) -> None:
    host, port, sample = start(f"{kind}=1.05@0.05", f"{kind}=off@0.1")
    sample = run(host, sample, 80)[-1]
    true_a = port.device.current_a
    assert amperes(host, sample) == pytest.approx((true_a * factors[0], true_a * factors[1]), rel=1e-3)
    assert amperes(host, run(host, sample, 60)[-1]) == pytest.approx((true_a, true_a), rel=1e-3)


@pytest.mark.parametrize("factor", [1.08, 0.85])
def test_h02_h03_the_output_gives_more_or_less_than_it_is_told(factor: float) -> None:
    host, port, sample = start(f"gain={factor}@0.05", "gain=off@0.1")
    sample = run(host, sample, 80)[-1]
    assert sample.applied == 6000
    assert port.device.current_a == pytest.approx(factor * 6000 * CODE_A, rel=1e-3)
    run(host, sample, 60)
    assert port.device.current_a == pytest.approx(6000 * CODE_A, rel=1e-3)


def test_h17_a_reversed_output_drives_the_other_way_and_the_readings_show_it() -> None:
    host, port, sample = start("polarity@0.05", "polarity=off@0.1", "gain=1.1@0.06")
    sample = run(host, sample, 90)[-1]
    assert port.device.current_a == pytest.approx(-1.1 * 6000 * CODE_A, rel=1e-3)
    assert amperes(host, sample)[0] == pytest.approx(-1.1 * 6000 * CODE_A, rel=1e-3)
    run(host, sample, 60)
    assert port.device.current_a == pytest.approx(1.1 * 6000 * CODE_A, rel=1e-3)


@pytest.mark.parametrize("mains_hz", [50.0, 60.0])
def test_h41_hum_is_on_the_voltage_reading_and_not_in_the_skin(mains_hz: float) -> None:
    host, port, sample = start("hum=500@0.1", "hum=off@0.3", hum_hz=mains_hz)
    seen = run(host, sample, 300)
    lsb_v = host.info.voltage_lsb_nv * 1e-9
    volts = [one.voltage * lsb_v for one in seen]
    quiet, loud = volts[50:95], volts[110:290]
    assert max(quiet) - min(quiet) < 0.01
    assert max(loud) - min(loud) == pytest.approx(1.0, abs=0.03)
    mean = sum(loud) / len(loud)
    crossings = sum(before < mean <= after for before, after in itertools.pairwise(loud))
    assert crossings == pytest.approx(mains_hz * len(loud) * 1e-3, abs=1)
    assert port.device.current_a == pytest.approx(6000 * CODE_A, rel=1e-3)
    volts = [one.voltage * lsb_v for one in run(host, seen[-1], 40)]
    assert max(volts) - min(volts) < 0.01


def test_h42_a_bridge_between_channels_takes_current_from_one_skin_to_the_next() -> None:
    client = Client(
        channels=3, faults=["crosstalk=20000@0.2", "crosstalk=off@0.6"], load=LOAD, noise_codes=0.0, dac_gain_error=0.0,
        dac_offset_codes=0.0,
    )  # fmt: skip
    codes = [12000, 0, 6000]
    for _ in range(590):
        client.command(codes)
    currents = [client.device.channel(c).current_a for c in range(3)]
    # Of two loads of 3 kohm, one driven: what crosses 20 kohm is the difference of their voltages.
    crossed = (currents[0] - currents[1]) * 3000.0 / 20000.0
    assert currents[1] == pytest.approx(crossed, rel=1e-3)
    assert currents[0] == pytest.approx(12000 * CODE_A - crossed, rel=1e-3)
    assert currents[2] == pytest.approx(6000 * CODE_A, rel=1e-3)
    # And through an open relay too: no command of the other channel's stops it.
    for _ in range(5):
        client.command(codes, relays=0b101)
    assert not client.device.channel(1).relay_closed
    assert client.device.channel(1).current_a == pytest.approx(crossed, rel=1e-3)
    for _ in range(60):
        client.command(codes)
    assert client.device.channel(1).current_a == pytest.approx(0.0, abs=1e-8)


def test_h43_a_spent_electrode_goes_against_the_current() -> None:
    host, _, sample = start("redox=0.5@0.1", "redox=off@0.8")
    lsb_v = host.info.voltage_lsb_nv * 1e-9
    seen = run(host, sample, 790)
    assert (seen[350].voltage - seen[95].voltage) * lsb_v == pytest.approx(0.6, abs=0.02)
    assert (seen[-1].voltage - seen[95].voltage) * lsb_v == pytest.approx(1.2, abs=0.01)
    assert (run(host, seen[-1], 30)[-1].voltage - seen[95].voltage) * lsb_v == pytest.approx(0.0, abs=0.01)


def test_h11_a_breakdown_takes_the_skins_resistance_to_a_twentieth_at_once() -> None:
    host, _, sample = start("breakdown=20@0.1", "breakdown=off@0.2")
    lsb_v = host.info.voltage_lsb_nv * 1e-9
    seen = run(host, sample, 180)
    set_a = 6000 * CODE_A
    assert seen[95].voltage * lsb_v == pytest.approx(set_a * 3000.0, rel=0.01)
    assert seen[103].voltage * lsb_v == pytest.approx(set_a * 1100.0, rel=0.01)
    assert run(host, seen[-1], 60)[-1].voltage * lsb_v == pytest.approx(set_a * 3000.0, rel=0.01)


def test_h12_the_resistance_rises_by_its_percentage_a_second_and_then_stays() -> None:
    host, _, sample = start("rising=10@0.1", "rising=off@2.1")
    lsb_v = host.info.voltage_lsb_nv * 1e-9
    seen = run(host, sample, 2095)
    assert seen[1098].voltage / seen[98].voltage == pytest.approx(1.105, abs=0.003)
    assert seen[-1].voltage * lsb_v == pytest.approx(6000 * CODE_A * 3000.0 * 1.22, rel=0.01)
    assert run(host, seen[-1], 200)[-1].voltage == pytest.approx(seen[-1].voltage, rel=2e-3)


def test_h34_a_late_output_follows_its_command_by_so_many_periods_and_never_after_a_lapse() -> None:
    host, port, sample = start("delay=5@0.05")
    sample = run(host, sample, 80, code=1000)[-1]
    on = []
    for _ in range(10):
        sample = host.step(sample, code=9000)
        on.append(port.device.current_a > 5000 * CODE_A)
        applied = sample.applied
    assert (applied, on.index(True)) == (9000, 1 + 5)
    for _ in range(100):
        host.pass_over()
    assert (port.device.phase, port.device.current_a) == ("expired", 0.0)


@pytest.mark.parametrize(
    ("fault", "bit"),
    [
        ("hot", DeviceStatus.OVER_TEMPERATURE),
        ("supply-warning", DeviceStatus.SUPPLY_WARNING),
        ("supply-low", DeviceStatus.SUPPLY_LOW),
        ("speaker", DeviceStatus.SPEAKER_FAULT),
    ],
)
def test_h39_h44_h50_a_status_bit_stands_while_its_cause_does(fault: str, bit: DeviceStatus) -> None:
    host, port, sample = start(f"{fault}@0.05", f"{fault}=off@0.1")
    status = [bool(one.status & bit) for one in run(host, sample, 150)]
    # The period of sample 50 begins at 0.05 s.
    assert status == [50 <= index < 100 for index in range(1, 151)]
    assert port.device.current_a > 0.0


def test_h45_the_stop_button_is_seen_for_as_long_as_it_is_held() -> None:
    host, _, sample = start("stop-button=0.02@0.05", "stop-button=0.01@0.1")
    pressed = [one.index for one in run(host, sample, 150) if one.status & DeviceStatus.PATIENT_STOP]
    assert pressed == [*range(50, 70), *range(100, 110)]


def test_h40_a_leaking_device_is_off_within_its_period_and_stays_so_until_it_leaks_no_more() -> None:
    host, port, sample = start("leakage@0.05", "leakage=off@0.2")
    sample = run(host, sample, 49)[-1]
    assert port.device.current_a > 0.0
    sample = host.step(sample, code=6000)
    assert (port.device.current_a, port.device.relay_closed, port.device.phase) == (0.0, False, "tripped")
    assert sample.status & DeviceStatus.LEAKAGE
    host.arm()
    host.receive(0x83)
    assert host.sample().status & DeviceStatus.LEAKAGE
    assert port.device.phase == "tripped"
    while port.device.ticks < 210:
        host.pass_over()
    host.arm()
    host.receive(0x83)
    assert not host.sample().status & DeviceStatus.LEAKAGE


def test_h49_a_device_whose_self_test_failed_says_so_from_the_first_sample_and_closes_no_relay() -> None:
    host, port, sample = start("post-fail@0")
    assert sample.status == DeviceStatus.SELF_TEST_FAILED
    seen = run(host, sample, 50)
    assert all(one.status & DeviceStatus.SELF_TEST_FAILED for one in seen)
    assert not any(one.status & DeviceStatus.RELAY_CLOSED for one in seen)
    assert port.device.charge_c == 0.0
    host.send(b"\x06")
    assert host.counters().status == DeviceStatus.SELF_TEST_FAILED


def test_a_device_that_lies_about_its_limits_reads_back_another_cap() -> None:
    host, _ = sim(faults=["lie-limits@0"])
    host.hello()
    host.limits()
    back = host.receive(0x82)
    assert back[1:] != host.limits_payload[1:]
    differs = [k for k, (said, sent) in enumerate(zip(back, host.limits_payload, strict=True)) if said != sent]
    assert differs[:2] == [0, 12]


def test_a_device_can_become_another_one_in_mid_session() -> None:
    host, _, sample = start("identity@0.05")
    serials = []
    for _ in range(2):
        serials.append(host.hello().serial)
        sample = host.sample()
        sample = run(host, sample, 60)[-1]
    assert serials == ["VIRTUAL-0001", "xIRTUAL-0001"]


@pytest.mark.parametrize("claim", range(1, 22))
def test_each_absurd_claim_changes_one_field_of_the_hello(claim: int) -> None:
    hello = {}
    for fault in ((), (f"absurd={claim}@0",)):
        host, _ = sim(faults=fault)
        host.send(bytes([1, 1]))
        hello[fault] = host.receive(0x81)
    honest, absurd = hello.values()
    changed = [k for k, (said, meant) in enumerate(zip(absurd, honest, strict=True)) if said != meant]
    assert changed and changed[-1] - changed[0] < 4


def test_a_deaf_device_lets_go_by_itself_unless_its_leases_are_stuck() -> None:
    for stuck in (False, True):
        host, port, sample = start("deaf=0.2@0.1", *(["lease-stuck@0.05"] if stuck else []))
        applied = {one.index: one.applied_index for one in run(host, sample, 250)}
        assert applied[250] == applied[105], "nothing was heard since"
        assert (port.device.phase, port.device.current_a > 0.0) == (("armed", True) if stuck else ("expired", False))


def heard(host: Host, sample: Sample) -> list[bytes]:
    """All frames that follow the answer to this sample."""
    host.command(sample, code=1000)
    return host.payloads()


def test_a_flood_stands_ahead_of_each_sample_and_ends() -> None:
    host, _, sample = start("flood=20@0.05", "flood=off@0.1")
    counts = []
    for _ in range(120):
        frames = heard(host, sample)
        counts.append(len(frames) - 1)
        sample = Sample(frames[-1])
    assert counts == [20 if 50 <= index < 100 else 0 for index in range(1, 121)]


@pytest.mark.parametrize("fault", ["repeat", "replayed"])
def test_samples_are_repeated_or_old_ones_come_again(fault: str) -> None:
    host, _, sample = start(f"{fault}@0.02", f"{fault}=off@0.04")
    found = []
    for _ in range(60):
        samples = [Sample(payload) for payload in heard(host, sample)]
        sample = samples[0]
        found.append([one.index for one in samples])
    again = {k: k if fault == "repeat" else 20 for k in range(20, 40)}
    assert found == [[k, again[k]] if k in again else [k] for k in range(1, 61)]
