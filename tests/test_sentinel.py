"""A sentinel electrode: the voltage of the active site alone, from the wire to the record."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ionto_rt.configuration import device_limits
from ionto_rt.core.controller import Controller
from ionto_rt.core.loop import Loop
from ionto_rt.core.wire import encode_frame, pack_sample, unpack_sample
from ionto_rt.device import Hello, open_device, parse_hello
from ionto_rt.record import Record
from ionto_rt.replay import replay
from ionto_rt.session import Session
from support import LSB_V, SAMPLE_FIELDS, TOKEN, Rig, endless, hello, planned, run_on_device, same_bits
from test_virtual_device import sim
from treatments import treatment

STEPS = '[[steps]]\ncurrent = "2 mA"\ntime = "8 s"\nramp = "2.6 s"'


def test_the_reading_stands_behind_the_channels_and_only_who_expects_it_reads_it() -> None:
    channels = [dict.fromkeys(SAMPLE_FIELDS, 0) | {"sentinel_code": code} for code in (-5, 70000)]
    payload = pack_sample(channels, sentinel=True)
    assert payload[-8:] == struct.pack("<ii", -5, 70000)
    assert unpack_sample(payload, sentinel=True) == channels
    assert [channel["sentinel_code"] for channel in unpack_sample(payload)] == [0, 0]
    assert unpack_sample(payload + b"later", sentinel=True) == channels


def test_a_sample_without_the_promised_reading_is_none() -> None:
    channel = dict.fromkeys(SAMPLE_FIELDS, 0)
    with pytest.raises(ValueError, match="the sentinel's reading is missing"):
        unpack_sample(pack_sample([channel]) + bytes(3), sentinel=True)


def test_one_channel_with_a_sentinel_takes_52_bytes() -> None:
    assert len(encode_frame(pack_sample([dict.fromkeys(SAMPLE_FIELDS, 0x55)], sentinel=True))) == 52


def raw_hello(**options: Any) -> bytes:
    host, _ = sim(**options)
    host.send(bytes([1, 1]))
    return host.receive(0x81)


def test_the_hello_says_that_it_is_wired_and_gives_its_scale() -> None:
    plain, wired = parse_hello(raw_hello()), parse_hello(raw_hello(sentinel=1))
    assert (plain.sentinel_lsb_v, plain.sentinel_offset_q16) == (0.0, 0)
    assert wired.sentinel_lsb_v == wired.voltage_lsb_v
    assert wired.sentinel_offset_q16 != wired.voltage_offset_q16


def test_a_sentinel_without_a_scale_is_refused() -> None:
    payload = bytearray(raw_hello(sentinel=1))
    payload[-8:-4] = bytes(4)
    with pytest.raises(ValueError, match="a sentinel electrode without a scale"):
        parse_hello(bytes(payload))


def test_features_that_this_host_does_not_know_are_ignored() -> None:
    payload = bytearray(raw_hello(sentinel=1))
    payload[-12] = 0xFE
    assert parse_hello(bytes(payload) + b"more").sentinel_lsb_v == 0.0


def rows_of(**options: Any) -> tuple[np.ndarray, dict[str, Any], list[dict[str, Any]]]:
    return run_on_device(STEPS, **options)


def test_both_sites_and_the_body_make_up_the_whole() -> None:
    """On the nominal subject: the sentinel sees less than the whole, and the body's 530 ohm are not in it."""
    rows, _, _ = rows_of(sentinel=1, noise_codes=0.0)
    steady = rows[rows["phase"] == 3]
    current, whole, site = (steady[name] for name in ("current_a", "voltage_v", "sentinel_v"))
    rest_ohm = (whole - site) / current
    assert np.all(np.abs(site) > 0.1) and np.all(rest_ohm > 530.0)
    assert np.all(np.sign(site) == np.sign(whole))


def test_on_a_dummy_load_the_reading_is_its_parallel_part() -> None:
    rows, _, _ = rows_of(sentinel=1, noise_codes=0.0, load="600,2k,240n")
    steady = rows[rows["phase"] == 3][200:]
    assert np.mean(steady["sentinel_v"] / steady["current_a"]) == pytest.approx(2e3, rel=1e-3)
    assert np.mean(steady["voltage_v"] / steady["current_a"]) == pytest.approx(2.6e3, rel=1e-3)


def test_the_sentinel_is_read_with_the_voltage_late_or_not() -> None:
    late, _, _ = rows_of(sentinel=1, noise_codes=0.0, load="600,2k,240n", skew_us=20.0)
    steady = late[late["phase"] == 3][200:]
    assert np.mean(steady["sentinel_v"] / steady["current_a"]) == pytest.approx(2e3, rel=1e-3)


def test_the_estimates_of_the_active_site_are_in_the_rows_and_replay_to_the_bit() -> None:
    """Of the nominal subject under 8 cm2: 30 nF/cm2, 400 ohm cm2 in series, and half of the leads' 4 ohm."""
    rows, config, segments = rows_of(sentinel=1, sample_rate_hz=5000.0)
    known = rows[(rows["active_parallel_ohm"] > 0.0) & (rows["phase"] == 3)]
    assert len(known) > 0.5 * np.count_nonzero(rows["phase"] == 3)
    assert np.all(known["active_parallel_ohm"] < known["parallel_ohm"])
    assert np.median(known["active_capacitance_f"]) == pytest.approx(240e-9, rel=0.1)
    assert np.median(known["active_series_ohm"]) == pytest.approx(52.0, rel=0.3)
    assert same_bits(rows, Controller(config, segments).run(rows)) == ""


def test_without_a_sentinel_its_columns_are_zero() -> None:
    rows, _, _ = rows_of()
    for name in ("sentinel_code", "sentinel_v", "active_series_ohm", "active_parallel_ohm", "active_capacitance_f"):
        assert not rows[name].any(), name


def wired(**changes: Any) -> Hello:
    return hello(sentinel_lsb_v=LSB_V, sentinel_offset_q16=32768, **changes)


def test_the_reading_is_converted_by_its_own_calibration() -> None:
    rig = Rig(planned(device=wired())[0], endless(1e-3))
    assert rig.tick(sentinel_code=1000)["sentinel_v"] == 999.5 * LSB_V


@pytest.mark.parametrize("code", [32768, -32768, 2**31 - 1, -(2**31)])
def test_a_reading_out_of_range_is_left_out_and_stops_nothing(code: int) -> None:
    """The lead of the sentinel came off: the site's estimate waits, the treatment goes on."""
    config, _ = planned(device=wired())
    rigs = [Rig(config, endless(1e-3)) for _ in range(2)]
    for rig, bad in zip(rigs, (500, code), strict=True):
        rig.run(300, sentinel_code=bad)
    good, lost = (rig.controller.stages for rig in rigs)
    assert good["impedance"] == lost["impedance"] and good["regulator"] == lost["regulator"]
    assert rigs[1].trips() == [] and all(row["sample_fault"] == 0 for row in rigs[1].rows)
    assert all(row["active_parallel_ohm"] == 0.0 for row in rigs[1].rows)


def test_a_loop_that_was_promised_the_reading_takes_no_sample_without_it() -> None:
    with open_device("sim:") as device:
        config, plan = planned(treatment(STEPS), device.hello)
        config["calibration"]["sentinel_lsb_v"] = 1e-3
        loop = Loop(Controller(config, plan.segments), device.port.loop_port(), virtual_clock=True)
        device.push_limits(**device_limits(device.hello, plan.limits, TOKEN))
        device.arm(4, TOKEN)  # type: ignore[arg-type]
        assert loop.run(1) != "running"
        assert len(loop.drain()) == 0


def test_a_session_with_a_sentinel_keeps_the_columns_and_replays(tmp_path: Path) -> None:
    with open_device("sim:?sentinel=1") as device:
        Session(treatment(STEPS), device, out_dir=tmp_path, speed="max").run()
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    record = Record.open(folder)
    assert record.session["device"]["sentinel"] is True
    assert {"sentinel_code", "sentinel_v", "active_capacitance_f"} <= {name for name, _ in record.telemetry().columns}
    assert replay(folder).identical


def test_a_device_without_a_sentinel_sends_no_byte_more() -> None:
    host, _ = sim()
    assert host.start().frame_bytes <= 48
    assert len(raw_hello()) == 96 + 4 * 32
