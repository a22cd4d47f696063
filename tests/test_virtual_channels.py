"""Several channels on one virtual device, and a host that paces: each for itself, but for what switches off all."""

import csv
import json
import math
import os
import signal
import struct
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ionto_rt.codes import Pacing
from ionto_rt.core.virtual_device import VirtualDevice
from ionto_rt.core.wire import pack_command, unpack_sample
from ionto_rt.device import Device, DeviceCounters, open_device
from ionto_rt.errors import RefusedError
from ionto_rt.virtual_device import SimPort, make_device, parse_fault, read_state
from test_virtual_device import (
    CHARGE_CAP,
    EXPIRED,
    LATE,
    LOCK_STEP,
    NONCE,
    OVER_CURRENT,
    RELAY_CLOSED,
    STALE,
    STATE,
    TOKEN,
    TRUTH_COLUMNS,
    frame,
    unframe,
)

HOST = 2
CAP = {"current_cap_code": 30000, "output_code_min": -20000, "output_code_max": 20000, "charge_cap_codes": 2**60}

Channels = list[dict[str, int]]


class Client:
    """A host of several channels, on a device in this process."""

    def __init__(self, pacing: int = LOCK_STEP, caps: dict[int, dict[str, int]] | None = None, **options: Any):
        self.device = make_device(pacing="all", **options)
        self.samples: list[Channels] = []
        self.errors: list[int] = []
        self.payloads: list[bytes] = []
        self.say(bytes([1, 1]))
        self.hello = self.payloads[-1]
        limits = struct.pack("<BBHII", 2, 2, 80, TOKEN, 10**6)
        for number in range(self.device.channels):
            limits += struct.pack("<iiiq", *{**CAP, **(caps or {}).get(number, {})}.values())
        self.say(limits)
        assert self.payloads[-1] == b"\x82" + limits[1:]
        self.say(struct.pack("<BBHI", 3, pacing, 0, TOKEN))

    def say(self, payload: bytes) -> None:
        self.device.receive(frame(payload))
        self.hear()

    def hear(self) -> None:
        for part in self.device.transmit().split(b"\0")[:-1]:
            payload = unframe(part)
            self.payloads.append(payload)
            if payload[0] == 0x85:
                self.samples.append(unpack_sample(payload))
            elif payload[0] == 0xFF:
                self.errors.append(payload[1])

    def command(self, codes: list[int], relays: int = -1, lease: int = 80, **wrong: int) -> Channels:
        """Answers the newest sample; the sample that follows."""
        newest = self.samples[-1][0]
        head = {"index": newest["index"], "token": TOKEN, "nonce": newest["nonce"], "lease_ticks": lease, **wrong}
        self.say(pack_command([{**head, "flags": relays >> c & 1, "code": code} for c, code in enumerate(codes)]))
        return self.samples[-1]

    def disarm(self) -> bytes:
        self.say(struct.pack("<BBHI", 4, 0, 0, TOKEN))
        assert self.payloads[-1][0] == 0x84
        return self.payloads[-1]

    def advance(self, periods: int) -> None:
        self.device.advance(periods)
        self.hear()

    def column(self, channel: int) -> list[dict[str, int]]:
        return [sample[channel] for sample in self.samples]

    @property
    def offset_q16(self) -> int:
        return int(struct.unpack_from("<i", self.hello, 96 + 2 * 32 + 8)[0])


def charges_of(client: Client, periods: list[int] | None = None) -> list[tuple[int, int]]:
    """(net, absolute) of each channel, from the samples, each counted for so many periods."""
    weights = periods or [1] * len(client.samples)
    found = []
    for channel in range(client.device.channels):
        terms = [row["current_code"] * 65536 - client.offset_q16 for row in client.column(channel)]
        net = sum(weight * term for weight, term in zip(weights, terms, strict=True))
        found.append((net, sum(weight * abs(term) for weight, term in zip(weights, terms, strict=True))))
    return found


# ---- channels --------------------------------------------------------------------------------------------------------


@given(
    channels=st.integers(2, 5),
    seed=st.integers(0, 2**64 - 1),
    codes=st.lists(st.integers(-20000, 20000), min_size=5, max_size=20),
    kind=st.sampled_from(["open", "short", "stuck", "area=0.5", "leak=5000"]),
)
@settings(max_examples=30, deadline=None)
def test_channel_0_is_bit_by_bit_a_device_of_one_channel_whatever_happens_on_the_others(channels, seed, codes, kind):
    alone = Client(channels=1, seed=seed)
    several = Client(channels=channels, seed=seed, faults=[f"1:{kind}@0.005", f"{channels - 1}:short@0.01"])
    for k, code in enumerate(codes):
        alone.command([code])
        several.command([code] + [codes[(k + c) % len(codes)] // 2 for c in range(1, channels)], relays=1 | k << 1)
    assert several.column(0) == alone.column(0)
    first = several.device.channel(0)
    for name in ("current_a", "charge_c", "absolute_charge_c", "voltage_v", "net_codes", "absolute_codes"):
        assert getattr(first, name) == getattr(alone.device, name)


@given(channel=st.integers(1, 31), seed=st.integers(0, 1000), front_end=st.sampled_from(["current", "voltage"]))
@settings(max_examples=15, deadline=None)
def test_a_channel_has_the_skin_of_the_seed_so_many_further(channel, seed, front_end):
    several = Client(channels=channel + 1, seed=seed, front_end=front_end)
    alone = Client(channels=1, seed=seed + channel, front_end=front_end)
    for k in range(30):
        several.command([0] * channel + [100 * k])
        alone.command([100 * k])
    assert several.device.channel(channel).charge_c == alone.device.charge_c != 0.0
    assert several.device.channel(channel).voltage_v == alone.device.voltage_v
    assert several.device.channel(0).charge_c != several.device.channel(channel).charge_c


def test_the_calibration_of_the_hello_holds_for_every_channel():
    client = Client(channels=8, noise_codes=0.0, load=(1000.0, 1000.0, 1e-9), seed=11)
    for _ in range(20):
        client.command([5000] * 8)
    lsb_fa, offset_q16, redundant_fa, redundant_q16 = struct.unpack_from("<IiIi", client.hello, 96 + 2 * 32 + 4)
    readings = set()
    for number, row in enumerate(client.samples[-1]):
        truth_a = client.device.channel(number).current_a
        assert (row["current_code"] - offset_q16 / 65536) * lsb_fa * 1e-15 == pytest.approx(truth_a, rel=5e-4)
        assert (row["redundant_code"] - redundant_q16 / 65536) * redundant_fa * 1e-15 == pytest.approx(
            truth_a, rel=5e-4
        )
        readings.add((row["current_code"], row["redundant_code"], row["voltage_code"]))
    assert len(readings) > 1


@given(codes=st.lists(st.lists(st.integers(-20000, 20000), min_size=3, max_size=3), min_size=1, max_size=30))
@settings(max_examples=25, deadline=None)
def test_the_count_of_each_channel_is_the_sum_of_its_samples(codes):
    client = Client(channels=3, seed=6)
    for row in codes:
        client.command(row)
    assert [client.samples[-1][c]["charge_codes"] for c in range(3)] == [net for net, _ in charges_of(client)]
    done = client.disarm()
    assert len(done) == 44 + 2 * 16
    assert list(struct.iter_unpack("<qq", done[28:])) == charges_of(client)


def test_a_relay_is_closed_by_its_own_bit():
    client = Client(channels=3)
    for _ in range(3):
        client.command([1000, 2000, 3000], relays=0b101)
    assert [bool(row["status"] & RELAY_CLOSED) for row in client.samples[-1]] == [True, False, True]
    assert [row["applied_code"] for row in client.samples[-1]] == [1000, 2000, 3000]
    assert client.device.channel(1).current_a == 0.0


def test_a_lapse_switches_all_channels_off_and_then_opens_all_relays():
    client = Client(channels=4)
    client.command([1000, -2000, 3000, 0], lease=3)
    for _ in range(20):
        client.say(b"\x06")
    on = [all(row["status"] & RELAY_CLOSED for row in sample) for sample in client.samples]
    expired = [{row["status"] & EXPIRED for row in sample} for sample in client.samples]
    assert [k for k, closed in enumerate(on) if closed] == list(range(2, 15))
    assert expired == [{0}] * 5 + [{EXPIRED}] * 17
    assert all(row["applied_code"] == 0 for sample in client.samples[5:] for row in sample)
    assert client.device.lapsed == 1


@pytest.mark.parametrize(
    ("caps", "bit"),
    [({2: {"current_cap_code": 4000}}, OVER_CURRENT), ({1: {"charge_cap_codes": 40000 * 65536}}, CHARGE_CAP)],
)
def test_the_cap_of_one_channel_switches_the_whole_device_off(caps, bit):
    client = Client(channels=4, caps=caps)
    for _ in range(12):
        client.command([5000, 5000, 5000, 5000])
    assert client.device.phase == "tripped"
    assert [row["status"] for row in client.samples[-1]] == [bit] * 4
    assert [row["applied_code"] for row in client.samples[-1]] == [0] * 4
    assert not any(client.device.channel(c).relay_closed for c in range(4))
    assert STATE in client.errors


def test_limits_of_one_channel_beyond_the_devices_own_refuse_all():
    with pytest.raises(AssertionError):
        Client(channels=2, caps={1: {"output_code_max": 40000}})


def test_a_fault_is_on_the_channel_it_names():
    client = Client(channels=3, faults=["2:open@0.01", "open@0.02"], load=(1000.0, 1000.0, 1e-7))
    for _ in range(25):
        client.command([5000] * 3)
    flowing = [[row["current_code"] > 4000 for row in sample] for sample in client.samples]
    assert flowing[9] == [True, True, True]
    assert flowing[15] == [True, True, False]
    assert flowing[25] == [False, True, False]


@pytest.mark.parametrize("text", ["x:open@1", ":open@1", "-1:open@1", "1:unplug@1", "0:stall@1+1", "1:2:open@1"])
def test_a_channel_that_is_not_understood_is_named(text):
    with pytest.raises(ValueError, match="is not understood"):
        parse_fault(text)


def test_a_fault_of_a_channel_that_is_not_there_is_refused():
    assert parse_fault("2:open@60") == ("open", 0.0, 60.0, 2)
    with pytest.raises(ValueError, match="channel 2"):
        make_device(channels=2, faults=["2:open@60"])


@pytest.mark.parametrize("channels", [0, 33])
def test_no_device_has_more_than_32_channels_or_none(channels):
    with pytest.raises(ValueError, match="1 to 32"):
        VirtualDevice(channels=channels)


def test_32_channels_with_a_sentinel_each_fit_the_frame():
    client = Client(channels=32, sentinel=1)
    client.command(list(range(32)))
    (payload,) = [payload for payload in client.payloads if payload[0] == 0x85][-1:]
    assert len(payload) == 976
    assert len({row["sentinel_code"] for row in unpack_sample(payload, sentinel=True)}) > 1
    client.command(list(range(32)))
    assert [row["applied_code"] for row in client.samples[-1]] == list(range(32))


def test_the_truth_has_a_row_for_each_channel_and_period(tmp_path):
    path = tmp_path / "truth.csv"
    with path.open("wb", buffering=0) as file:
        client = Client(channels=3, truth_fd=file.fileno())
        for _ in range(10):
            client.command([1000, 2000, 3000])
        client.disarm()
    with path.open(newline="") as text:
        reader = csv.DictReader(text)
        rows = list(reader)
    assert reader.fieldnames == ["channel", *TRUTH_COLUMNS]
    assert [(int(row["index"]), int(row["channel"])) for row in rows] == [(k, c) for k in range(12) for c in range(3)]
    for channel in range(3):
        assert float(rows[-3 + channel]["charge_c"]) == pytest.approx(
            client.device.channel(channel).charge_c, rel=1e-11
        )


def test_the_charges_of_every_channel_survive_a_restart(tmp_path):
    path = tmp_path / "state.json"
    client = Client(channels=3, state=path)
    for _ in range(20):
        client.command([1000, -2000, 3000])
    client.device.run_down()
    charges = [(client.device.channel(c).net_codes, client.device.channel(c).absolute_codes) for c in range(3)]
    assert read_state(path)["further_channels"] == charges[1:]
    with open_device("sim:", defaults={"channels": 3, "state": str(path)}) as device:
        assert device.hello.channels == 3
        assert list(device.hello.last_channel_charges) == charges
        assert (device.hello.last_net_codes, device.hello.last_absolute_codes) == charges[0]
    with open_device("sim:", defaults={"state": str(path)}) as device:
        assert device.hello.channels == 3, "as the state has it"
    with pytest.raises(ValueError, match="channels=3"):
        SimPort(channels=2, state=path)


# ---- the host's side -------------------------------------------------------------------------------------------------


def push(device: Device, **caps: Any) -> None:
    device.push_limits(range_index=2, lease_max_ticks=80, token=TOKEN, session_ticks=10**6, **{**CAP, **caps})


def test_limits_are_one_number_for_all_channels_or_one_for_each():
    with open_device("sim:?channels=3") as device:
        push(device)
        push(device, output_code_max=[100, 200, 300], output_code_min=[0, -1, -2])
        with pytest.raises(RefusedError, match="3 channels, and 2"):
            push(device, output_code_max=[100, 200])
        device.arm(Pacing.LOCK_STEP, TOKEN)
        counters = device.disarm(TOKEN)
    assert isinstance(counters, DeviceCounters)
    assert len(counters.channel_charges) == 3
    assert counters.channel_charges[0] == (counters.net_codes, counters.absolute_codes)


# ---- a host that paces -----------------------------------------------------------------------------------------------


def test_the_host_is_answered_by_one_sample_for_each_command_and_for_nothing_else():
    client = Client(HOST)
    assert [row["index"] for row in client.column(0)] == [0]
    for payload in (b"\x06", b"\x01\x01", b"\x55"):
        client.say(payload)
    client.device.receive(b"\x09nonsense\0")
    client.hear()
    assert len(client.samples) == 1
    client.command([100])
    client.command([200])
    client.command([300], nonce=client.samples[-1][0]["nonce"] ^ 1)
    client.command([400], index=0)
    assert client.errors[-2:] == [NONCE, STALE]
    assert [row["index"] for row in client.column(0)] == [0, 1, 2, 3, 4]
    assert [row["applied_code"] for row in client.column(0)] == [0, 0, 100, 200, 200]


@given(gaps=st.lists(st.integers(0, 6), min_size=1, max_size=25))
@settings(max_examples=40, deadline=None)
def test_the_index_advances_by_the_periods_that_passed_and_the_code_counts_for_each(gaps):
    client = Client(HOST, channels=2, seed=5)
    periods = [1]
    for gap in gaps:
        client.advance(gap)
        client.command([3000, -1000])
        periods.append(max(gap, 1))
    assert [row["index"] for row in client.column(0)] == [sum(periods[: k + 1]) - 1 for k in range(len(periods))]
    assert [client.samples[-1][c]["charge_codes"] for c in range(2)] == [n for n, _ in charges_of(client, periods)]
    for before, after in pairwise(client.column(0)):
        elapsed = after["index"] - before["index"]
        assert after["device_time_us"] - before["device_time_us"] == 1000 * elapsed
    late = [bool(row["status"] & LATE) for row in client.column(0)]
    assert late == [False] + [n > 1 for n in periods[:-1]]


def test_a_lease_runs_out_on_the_timer_and_what_flowed_meanwhile_is_counted():
    client = Client(HOST, noise_codes=0.0, load=(1000.0, 1000.0, 1e-9))
    for _ in range(10):
        client.command([5000], lease=20)
    client.advance(19)
    assert (client.device.phase, client.device.applied_code) == ("armed", 5000)
    client.advance(1)
    assert (client.device.phase, client.device.applied_code, client.device.relay_closed) == ("expired", 0, True)
    client.advance(10)
    assert not client.device.relay_closed
    assert len(client.samples) == 11
    code = client.samples[-1][0]["current_code"]
    one = code * 65536 - client.offset_q16
    assert client.device.net_codes == client.samples[-1][0]["charge_codes"] + 20 * one
    sample = client.command([5000])
    assert client.errors == [STATE]
    assert (sample[0]["index"], sample[0]["status"]) == (40, EXPIRED)
    assert client.device.net_codes == pytest.approx(29 * one, abs=2 * one)


def test_a_period_in_which_the_comparator_acts_is_counted_at_the_cap():
    client = Client(HOST, caps={0: {"current_cap_code": 4000}}, noise_codes=0.0, load=(1000.0, 1000.0, 1e-9))
    client.command([5000])
    before = client.device.net_codes
    client.advance(3)
    assert client.device.phase == "tripped"
    assert client.device.net_codes == before + 4000 * 65536 - client.offset_q16


def test_the_count_is_whole_when_the_host_hangs_up():
    client = Client(HOST, noise_codes=0.0, load=(1000.0, 1000.0, 1e-9))
    for _ in range(10):
        client.command([5000], lease=40)
    client.device.run_down()
    lsb_fa = struct.unpack_from("<I", client.hello, 96 + 2 * 32 + 4)[0]
    counted_c = client.device.net_codes / 65536 * lsb_fa * 1e-15 * 1e-3
    assert counted_c == pytest.approx(client.device.charge_c, rel=0.02)
    assert client.device.charge_c > 40 * 5e-7


@pytest.mark.parametrize("uri", ["sim:?pacing=host", "sim:?pacing=all", "sim:?round-trip=here.json"])
def test_what_needs_a_clock_is_refused_where_time_is_virtual(uri):
    with pytest.raises(RefusedError, match="use virtual:"):
        open_device(uri)


# ---- in real time ----------------------------------------------------------------------------------------------------


def served(tmp_path: Path, pacing: Pacing, channels: int = 1, **options: Any) -> Device:
    """An armed device as a process."""
    device = open_device(
        "virtual:", defaults={"channels": channels, "pacing": "all", "round_trip": str(tmp_path / "rt.json"), **options}
    )
    push(device)
    device.arm(pacing, TOKEN)
    return device


def next_sample(device: Device) -> Channels:
    while True:
        payloads = [payload for payload in device.reader.feed(device.port.read(65536, 2.0)) if payload[0] == 0x85]
        if payloads:
            return unpack_sample(payloads[-1])


def answer(device: Device, sample: Channels, code: int, lease: int = 80) -> None:
    head = {key: sample[0][key] for key in ("index", "nonce")}
    one = {**head, "token": TOKEN, "lease_ticks": lease, "flags": 1, "code": code}
    device.port.write(frame(pack_command([one] * len(sample))))


def test_a_host_that_paces_sees_the_index_follow_the_timer_of_the_device_and_never_fall_behind_it(tmp_path):
    with served(tmp_path, Pacing.HOST, channels=2) as device:
        sample = first = next_sample(device)
        start = due = sent = time.monotonic()
        commands = 0
        while time.monotonic() < start + 0.5:
            due += 1e-3 * max(1, math.ceil((time.monotonic() - due) / 1e-3))
            time.sleep(max(0.0, due - time.monotonic()))
            sent = time.monotonic()
            commands += 1
            answer(device, sample, 1000)
            newer = next_sample(device)
            assert newer[0]["index"] > sample[0]["index"]
            sample = newer
        heard = time.monotonic()
        counters = device.disarm(TOKEN)
    assert counters is not None
    passed = sample[0]["index"] - first[0]["index"]
    assert passed >= 1e3 * (sent - start) - 1
    # A host that is late by more than half a period, and then on time again, is given one index too many; and the
    # first sample had been on its way when the clock was looked at.
    assert passed <= 1e3 * (heard - start) + commands + 100
    assert sample[0]["device_time_us"] == 1000 * (sample[0]["index"] + 1)
    assert counters.refused == 0


def test_a_silent_host_that_paces_is_cut_off_by_the_timer(tmp_path):
    truth = tmp_path / "truth.csv"
    device = served(tmp_path, Pacing.HOST, truth=str(truth))
    answer(device, next_sample(device), 5000, lease=50)
    sample = next_sample(device)
    silent_until = time.monotonic() + 0.3
    assert device.reader.feed(device.port.read(65536, 0.3)) == []
    assert time.monotonic() >= silent_until
    answer(device, sample, 5000)
    late = next_sample(device)
    assert (late[0]["status"], late[0]["applied_code"]) == (EXPIRED, 0)
    assert late[0]["index"] - sample[0]["index"] == pytest.approx(300, abs=60)
    device.close()
    with truth.open(newline="") as file:
        flowing = [int(row["index"]) for row in csv.DictReader(file) if int(row["applied_code"])]
    assert flowing == list(range(sample[0]["index"] + 1, sample[0]["index"] + 51))


@pytest.mark.parametrize("pacing", [Pacing.DEVICE, Pacing.HOST])
def test_the_round_trip_file_has_one_time_for_each_sample_that_was_answered(tmp_path, pacing):
    with served(tmp_path, pacing, channels=3) as device:
        answered = 0
        sample = next_sample(device)
        while answered < 200:
            answer(device, sample, 1000)
            answered += 1
            sample = next_sample(device)
        counters = device.disarm(TOKEN)
        said = json.loads((tmp_path / "rt.json").read_text())
    assert counters is not None
    assert said["answered"] == sum(count for _, count in said["counts"])
    if pacing == Pacing.HOST:
        assert said["answered"] == answered
    else:
        assert said["answered"] == sample[0]["index"], "a newer command answers what was not answered"
    assert said["samples"] >= answered + (pacing == Pacing.HOST)
    assert (said["late"], said["dropped"]) == (counters.late, 0)
    order = [said[name] for name in ("p50_us", "p90_us", "p99_us", "p999_us", "p9999_us", "max_us")]
    assert order == sorted(order)
    assert 1.0 < said["p50_us"] < said["max_us"] < 1e6
    assert said["mean_us"] < said["max_us"]


def test_in_lock_step_there_is_no_round_trip_to_write(tmp_path):
    with served(tmp_path, Pacing.LOCK_STEP) as device:
        answer(device, next_sample(device), 0)
        next_sample(device)
        device.disarm(TOKEN)
    assert (tmp_path / "rt.json").read_text() == ""


@pytest.mark.parametrize(("rate", "channels"), [(10_000.0, 1), (1000.0, 32)])
def test_in_real_time_no_sample_is_left_out(tmp_path, rate, channels):
    with served(tmp_path, Pacing.DEVICE, channels, sample_rate_hz=rate) as device:
        start = time.monotonic()
        seen: list[int] = []
        while not seen or seen[-1] < rate / 2:
            data = device.port.read(65536, 2.0)
            seen += [unpack_sample(payload)[0]["index"] for payload in device.reader.feed(data) if payload[0] == 0x85]
        elapsed_s = time.monotonic() - start
        device.disarm(TOKEN)
    assert seen == list(range(len(seen)))
    assert elapsed_s == pytest.approx(0.5, abs=0.2)
    assert json.loads((tmp_path / "rt.json").read_text())["dropped"] == 0


def test_a_device_that_was_held_up_catches_up_sample_by_sample(tmp_path):
    with served(tmp_path, Pacing.DEVICE) as device:
        sample = next_sample(device)
        answer(device, sample, 1000, lease=80)
        assert device.process is not None
        start, first = time.monotonic(), sample[0]["index"]
        os.kill(device.process.pid, signal.SIGSTOP)
        while time.monotonic() < start + 0.05:
            pass
        os.kill(device.process.pid, signal.SIGCONT)
        seen: list[dict[str, int]] = []
        while not seen or seen[-1]["index"] < first + 200:
            data = device.port.read(65536, 2.0)
            seen += [unpack_sample(payload)[0] for payload in device.reader.feed(data) if payload[0] == 0x85]
        elapsed_s = time.monotonic() - start
    assert [row["index"] for row in seen] == list(range(seen[0]["index"], seen[-1]["index"] + 1))
    assert elapsed_s == pytest.approx(0.2, abs=0.05)
    assert sum(row["applied_code"] == 1000 for row in seen) == 80
