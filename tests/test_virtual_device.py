"""The virtual device by its wire and its truth: an independent client, with a codec of its own."""

import csv
import ctypes
import errno
import json
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ionto_rt.virtual_device import SimPort, parse_fault, read_state, serve

TOKEN = 0xC0FFEE
REAL, LOCK_STEP = 1, 4
RELAY_CLOSED, COMPLIANCE, EXPIRED, OVER_CURRENT = 1, 2, 4, 8
CHARGE_CAP, TIME_CAP, CLAMPED, LATE = 16, 32, 64, 128
NONE = 0xFFFFFFFF
UNDECODABLE, UNKNOWN_TYPE, VERSION, STATE, TOKEN_ERROR, NONCE, STALE, LEASE, LIMITS, PACING = range(1, 11)
TRUTH_COLUMNS = [
    "index",
    "device_time_s",
    "current_a",
    "current_peak_a",
    "charge_c",
    "absolute_charge_c",
    "voltage_v",
    "applied_code",
    "lease_ticks_left",
    "relay_closed",
    "lapsed",
    "contact_fraction",
]


def frame(payload: bytes) -> bytes:
    """COBS of payload and CRC-32, and the delimiter; written from the format's definition."""
    data = payload + struct.pack("<I", zlib.crc32(payload)) + b"\0"
    out = bytearray()
    for block in data[:-1].split(b"\0"):
        while len(block) >= 254:
            out += b"\xff" + block[:254]
            block = block[254:]
        out += bytes([len(block) + 1]) + block
    return bytes(out) + b"\0"


def unframe(data: bytes) -> bytes:
    out = bytearray()
    at = 0
    while at < len(data):
        code = data[at]
        assert code
        out += data[at + 1 : at + code]
        at += code
        if code < 255 and at < len(data):
            out.append(0)
    payload, crc = bytes(out[:-4]), out[-4:]
    assert struct.pack("<I", zlib.crc32(payload)) == bytes(crc)
    return payload


class Sample:
    def __init__(self, payload: bytes):
        self.frame_bytes = len(frame(payload))
        kind, channels, self.index, self.time_us, self.applied_index, self.nonce = struct.unpack_from(
            "<BBIIIH", payload
        )
        assert (kind, channels) == (0x85, 1)
        self.current, self.redundant, self.voltage, self.applied, self.status, self.charge = struct.unpack_from(
            "<iiiiHq", payload, 16
        )
        assert len(payload) == 42


class Hello:
    def __init__(self, payload: bytes):
        (
            self.type, self.version, self.channels, self.pacing, self.front_end, self.ranges, self.lease_max,
            self.firmware, self.period_ns, self.compliance_mv, self.voltage_lsb_nv, self.voltage_offset_q16,
            self.code_limit, model, serial, self.last_token, self.last_net, self.last_absolute, self.last_samples,
            self.last_range, reserved,
        ) = struct.unpack_from("<BBBBBBHIIIIii16s16sIqqIB7s", payload)  # fmt: skip
        assert reserved == bytes(7)
        self.model, self.serial = (text.rstrip(b"\0").decode() for text in (model, serial))
        keys = [
            "full_scale_na",
            "current_lsb_fa",
            "current_offset_q16",
            "redundant_lsb_fa",
            "redundant_offset_q16",
            "output_lsb",
            "output_code_min",
            "output_code_max",
            "ballast_mohm",
        ]
        self.range = [
            dict(zip(keys, struct.unpack_from("<IIiIiIhhI", payload, 96 + 32 * k), strict=True))
            for k in range(self.ranges)
        ]
        assert len(payload) == 96 + 32 * self.ranges


class Counters:
    def __init__(self, payload: bytes):
        (
            self.type, _, self.status, self.token, self.samples, self.late, self.lapsed, self.refused, self.bad_frames,
            self.net, self.absolute,
        ) = struct.unpack("<BBHIIIIIIqq", payload)  # fmt: skip


class Host:
    """The host's side of the wire over anything that reads and writes bytes."""

    def __init__(self, read, write):
        self._read, self._write = read, write
        self._data = b""
        self.inbox: list[bytes] = []

    def send(self, payload: bytes) -> None:
        self._write(frame(payload))

    def send_bytes(self, data: bytes) -> None:
        self._write(data)

    def payloads(self) -> list[bytes]:
        """Whatever payloads have come, at once if some are here, else after one read."""
        if not self.inbox:
            self._data += self._read()
            *whole, self._data = self._data.split(b"\0")
            self.inbox = [unframe(data) for data in whole]
        found, self.inbox = self.inbox, []
        return found

    def receive(self, kind: int) -> bytes:
        """The next payload of this type; those before it are dropped."""
        while True:
            found = self.payloads()
            assert found, f"nothing came while waiting for type {kind:#x}"
            for k, payload in enumerate(found):
                if payload[0] == kind:
                    self.inbox = found[k + 1 :]
                    return payload

    def hello(self) -> Hello:
        self.send(bytes([1, 1]))
        self.info = Hello(self.receive(0x81))
        return self.info

    def limits(self, range_=2, lease=80, token=TOKEN, ticks=10**6, cap_a=None, least=None, most=None, charge=2**60):
        one = self.info.range[range_]
        cap_a = 1.25e-9 * one["full_scale_na"] if cap_a is None else cap_a
        self.limits_payload = struct.pack(
            "<BBHIIiiiq", 2, range_, lease, token, ticks, int(cap_a / (1e-15 * one["current_lsb_fa"])),
            one["output_code_min"] if least is None else least,
            one["output_code_max"] if most is None else most, charge,
        )  # fmt: skip
        self.used = one
        self.send(self.limits_payload)

    def arm(self, pacing=LOCK_STEP, token=TOKEN):
        self.send(struct.pack("<BBHI", 3, pacing, 0, token))

    def start(self, pacing=LOCK_STEP, **limits) -> Sample:
        """Hello, limits, arming; returns sample 0."""
        self.hello()
        self.limits(**limits)
        assert self.receive(0x82) == b"\x82" + self.limits_payload[1:]
        self.arm(pacing)
        assert self.receive(0x83) == struct.pack("<BBHI", 0x83, pacing, 0, TOKEN)
        return self.sample()

    def sample(self) -> Sample:
        return Sample(self.receive(0x85))

    def command(self, sample, code=0, lease=80, close=True, token=TOKEN, index=None, nonce=None):
        self.send(
            struct.pack(
                "<BBIIHHi", 5, int(close), sample.index if index is None else index, token,
                sample.nonce if nonce is None else nonce, lease, code,
            )
        )  # fmt: skip

    def step(self, sample, **command) -> Sample:
        self.command(sample, **command)
        return self.sample()

    def pass_over(self) -> Sample:
        """A lock-step answer that renews nothing: a request for the counters."""
        self.send(b"\x06")
        return self.sample()

    def error(self) -> tuple[int, int, int]:
        """(code, offending type, index) of the next ERROR."""
        _, code, offending, _, index = struct.unpack("<BBBBI", self.receive(0xFF))
        return code, offending, index

    def counters(self, kind=0x86) -> Counters:
        return Counters(self.receive(kind))

    def code(self, current_a: float) -> int:
        return round(current_a / (1e-15 * self.used["output_lsb"]))

    def coulombs(self, codes: int) -> float:
        return codes / 65536 * self.used["current_lsb_fa"] * 1e-15 * self.info.period_ns * 1e-9


def sim(**options) -> tuple[Host, SimPort]:
    port = SimPort(**options)
    return Host(lambda: port.read(65536), port.write), port


@pytest.fixture
def device(tmp_path):
    """Starts virtual devices as processes; each gives (host, process, truth path, state path)."""
    started = []

    def start(**options):
        options = {"truth": str(tmp_path / "truth.csv"), "state": str(tmp_path / "state.json"), **options}
        process = subprocess.Popen(
            [sys.executable, "-m", "ionto_rt.virtual_device", json.dumps(options)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        line = process.stdout.readline()
        assert line, process.stderr.read().decode()
        ready = json.loads(line)
        assert ready["pid"] == process.pid
        fd = os.open(ready["port"], os.O_RDWR | os.O_NOCTTY)

        def read() -> bytes:
            if not select.select([fd], [], [], 5.0)[0]:
                return b""
            data = os.read(fd, 65536)
            if not data:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return data

        host = Host(read, lambda data: os.write(fd, data))
        host.fd, host.ready = fd, ready
        return host, process, Path(options["truth"]), Path(options["state"])

    yield start
    for process in started:
        process.kill()
        process.communicate()


def rows(truth: Path) -> list[dict[str, float]]:
    with truth.open(newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == TRUTH_COLUMNS
        return [{key: float(value) for key, value in row.items()} for row in reader]


# ---- hello, limits, arming -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("front_end", ["current", "voltage"])
def test_the_hello_states_what_the_device_is(front_end):
    host, _ = sim(front_end=front_end, sample_rate_hz=2000.0, serial="VD-7", compliance_v=48.0, pacing="both")
    hello = host.hello()
    assert (hello.version, hello.channels, hello.pacing) == (1, 1, REAL | LOCK_STEP)
    assert hello.front_end == (0 if front_end == "current" else 1)
    assert (hello.period_ns, hello.lease_max, hello.compliance_mv) == (500_000, 200, 48_000)
    assert (hello.serial, hello.code_limit) == ("VD-7", 32767)
    assert hello.voltage_lsb_nv * 1e-9 * hello.code_limit > 48.0
    assert [one["full_scale_na"] for one in hello.range] == [40_000, 400_000, 4_000_000, 40_000_000]
    for one in hello.range:
        full_scale_a = one["full_scale_na"] * 1e-9
        assert one["current_lsb_fa"] * 1e-15 * 32768 == pytest.approx(1.3 * full_scale_a, rel=0.005)
        assert one["redundant_lsb_fa"] != one["current_lsb_fa"]
        if front_end == "current":
            assert one["output_code_max"] * one["output_lsb"] * 1e-15 == pytest.approx(1.25 * full_scale_a, rel=1e-4)
            assert one["ballast_mohm"] == 0
        else:
            assert one["output_code_max"] * one["output_lsb"] * 1e-12 == pytest.approx(48.0, rel=1e-4)
            assert one["ballast_mohm"] * 1e-3 == pytest.approx(0.1 * 48.0 / full_scale_a)


def test_another_protocol_version_is_refused():
    host, _ = sim()
    host.send(bytes([1, 2]))
    assert host.error() == (VERSION, 0x01, NONE)


def test_a_frame_type_that_does_not_exist_is_refused():
    host, _ = sim()
    host.send(b"\x42\x00")
    assert host.error() == (UNKNOWN_TYPE, 0x42, NONE)


@pytest.mark.parametrize(
    "limits",
    [
        {"lease": 0}, {"lease": 101}, {"ticks": 0}, {"cap_a": 5.01e-3}, {"cap_a": 0.0}, {"cap_a": -1e-3},
        {"least": 1}, {"most": -1}, {"most": 31_508}, {"least": -31_508}, {"charge": 0}, {"charge": -1},
    ],
)  # fmt: skip
def test_limits_beyond_the_devices_own_are_refused(limits):
    host, port = sim()
    host.hello()
    host.limits(**limits)
    assert host.error() == (LIMITS, 0x02, NONE)
    assert port.device.phase == "idle"


def test_a_range_that_does_not_exist_is_refused():
    host, _ = sim()
    host.hello()
    host.send(struct.pack("<BBHIIiiiq", 2, 4, 80, TOKEN, 1000, 1000, -1, 1, 1))
    assert host.error() == (LIMITS, 0x02, NONE)


def test_arming_needs_limits_the_token_and_a_pacing_on_offer():
    host, port = sim()
    host.hello()
    host.arm()
    assert host.error() == (STATE, 0x03, NONE)
    host.limits()
    host.arm(token=TOKEN + 1)
    assert host.error() == (TOKEN_ERROR, 0x03, NONE)
    for pacing in (0, REAL, 2, LOCK_STEP | REAL):
        host.arm(pacing=pacing)
        assert host.error() == (PACING, 0x03, NONE)
    assert port.device.phase == "configured"
    host.arm()
    assert host.sample().index == 0
    host.limits()
    assert host.error()[:2] == (STATE, 0x02)


def test_frames_fit_a_small_microcontroller():
    host, _ = sim()
    assert host.start().frame_bytes <= 48
    assert len(frame(bytes(18))) == 24


# ---- the order of a period -------------------------------------------------------------------------------------------


def test_the_answer_to_sample_k_is_first_seen_in_sample_k_plus_2():
    host, port = sim(noise_codes=0.0)
    sample = host.start()
    assert (sample.index, sample.applied_index, sample.status) == (0, NONE, 0)
    code = host.code(2e-3)
    first = host.step(sample, code=code)
    assert (first.index, first.applied_index, first.applied, first.status) == (1, NONE, 0, 0)
    assert port.device.current_a == 0.0
    second = host.step(first, code=code)
    assert (second.index, second.applied_index, second.applied, second.status) == (2, 0, code, RELAY_CLOSED)
    assert (second.current - host.used["current_offset_q16"] / 65536) * host.used["current_lsb_fa"] * 1e-15 == (
        pytest.approx(1.015 * 2e-3, rel=2e-3)
    )


def test_device_time_counts_sample_periods():
    host, _ = sim(sample_rate_hz=4000.0)
    sample = host.start()
    times = [sample.time_us]
    for _ in range(10):
        sample = host.step(sample)
        times.append(sample.time_us)
    assert times == [250 * (k + 1) for k in range(11)]


@given(lease=st.integers(1, 100))
@settings(max_examples=25)
def test_a_lease_of_l_ticks_covers_l_periods_and_not_one_more(lease):
    host, port = sim(noise_codes=0.0)
    sample = host.start(lease=100)
    code = host.code(1e-3)
    sample = host.step(sample, code=code, lease=lease)
    applied = []
    for _ in range(lease + 15):
        sample = host.pass_over()
        applied.append((sample.applied, bool(sample.status & EXPIRED), bool(sample.status & RELAY_CLOSED)))
    assert applied[:lease] == [(code, False, True)] * lease
    assert applied[lease : lease + 10] == [(0, True, True)] * 10
    assert applied[lease + 10 :] == [(0, True, False)] * 5
    assert port.device.current_a == 0.0
    assert port.device.lapsed == 1


def test_a_lapse_is_latched_until_armed_again():
    host, port = sim()
    sample = host.start()
    host.step(sample, code=1000, lease=1)
    while port.device.phase != "expired":
        sample = host.pass_over()
    host.command(sample, code=1000)
    assert host.error() == (STATE, 0x05, sample.index)
    assert port.device.applied_code == 0
    host.arm()
    host.receive(0x83)
    sample = host.sample()
    assert (sample.index, sample.status, sample.applied_index) == (0, 0, NONE)
    sample = host.step(host.step(sample, code=1000), code=1000)
    assert sample.applied == 1000


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"token": TOKEN ^ 1}, TOKEN_ERROR),
        ({"nonce": 1}, NONCE),
        ({"index": 10_000}, NONCE),
        ({"index": 3}, STALE),
        ({"lease": 0}, LEASE),
        ({"lease": 81}, LEASE),
    ],
)
def test_only_a_newer_index_with_the_right_token_and_nonce_renews_the_lease(wrong, code):
    host, port = sim()
    sample = host.start()
    for _ in range(10):
        sample = host.step(sample, code=500, lease=20)
    left = port.device.lease_ticks_left
    if wrong.get("nonce") == sample.nonce:
        wrong["nonce"] = 2
    host.command(sample, code=600, **{"lease": 20, **wrong})
    assert host.error() == (code, 0x05, wrong.get("index", sample.index))
    sample = host.sample()
    assert (sample.applied, port.device.lease_ticks_left) == (500, left - 1)
    assert port.device.refused == 1
    sample = host.step(sample, code=700, lease=20)
    assert host.step(sample, code=700, lease=20).applied == 700


def test_the_same_command_twice_renews_nothing():
    host, port = sim()
    sample = host.start()
    host.command(sample, code=500, lease=5)
    host.command(sample, code=500, lease=5)
    assert host.error() == (STALE, 0x05, 0)
    assert port.device.lease_ticks_left == 4


@given(at=st.integers(0, 22), flip=st.integers(1, 255))
def test_a_corrupted_command_is_refused_and_the_lease_runs_on(at, flip):
    host, port = sim()
    sample = host.start()
    for _ in range(5):
        sample = host.step(sample, code=500)
    left = port.device.lease_ticks_left
    good = frame(struct.pack("<BBIIHHi", 5, 1, sample.index, TOKEN, sample.nonce, 80, 900))
    bad = bytearray(good)
    bad[at] ^= flip
    host.send_bytes(bytes(bad))
    seen = host.payloads()
    errors = [payload for payload in seen if payload[0] == 0xFF]
    assert errors
    assert all(payload[1] == UNDECODABLE for payload in errors)
    steps = sum(payload[0] == 0x85 for payload in seen)
    assert steps == len(errors)
    assert (port.device.applied_code, port.device.lease_ticks_left) == (500, left - steps)


@given(noise=st.binary(max_size=300))
def test_no_bytes_from_the_host_make_current_flow(noise):
    host, port = sim()
    sample = host.start()
    host.send_bytes(noise + b"\0")
    port.device.advance(200)
    assert port.device.absolute_charge_c == 0.0
    assert port.device.phase == "armed"
    found = [payload for payload in host.payloads() if payload[0] == 0x85]
    sample = Sample(found[-1])
    host.command(sample, code=100)
    port.device.advance(2)
    assert port.device.applied_code == 100


def test_bad_frames_are_counted():
    host, _ = sim()
    host.start()
    host.send_bytes(b"\x05garbage\0")
    assert host.error()[0] == UNDECODABLE
    host.sample()
    host.send(b"\x06")
    assert host.counters().bad_frames == 1


def test_a_command_that_misses_its_boundary_acts_at_the_next_and_is_counted_late():
    host, port = sim()
    sample = host.start()
    on_time = host.step(sample, code=100)
    host.send(b"\x06")
    after = host.sample()
    assert (after.applied, after.status & LATE) == (100, 0)
    host.command(on_time, code=200)
    host.sample()
    late = host.pass_over()
    assert (late.applied, late.applied_index, late.status & LATE) == (200, on_time.index, LATE)
    assert port.device.late == 1
    fresh = host.step(late, code=300)
    fresh = host.step(fresh, code=300)
    assert fresh.status & LATE == 0


@pytest.mark.parametrize(("asked", "applied"), [(1000, 800), (-1000, -700), (800, 800), (2**31 - 1, 800)])
def test_a_code_outside_the_pushed_limits_is_clamped_and_says_so(asked, applied):
    host, _ = sim()
    sample = host.step(host.start(least=-700, most=800), code=asked)
    sample = host.step(sample, code=asked)
    assert (sample.applied, bool(sample.status & CLAMPED)) == (applied, asked != applied)


def test_a_command_without_the_relay_flag_opens_the_relay():
    host, port = sim()
    sample = host.start()
    for _ in range(5):
        sample = host.step(sample, code=5000)
    assert port.device.current_a > 0.0
    for _ in range(2):
        sample = host.step(sample, code=5000, close=False)
    assert sample.status & RELAY_CLOSED == 0
    assert port.device.current_a == 0.0


# ---- the device's own caps and counters ------------------------------------------------------------------------------


def test_over_current_trips_within_the_period_opens_the_relay_and_latches():
    host, port = sim()
    sample = host.start(cap_a=2e-3)
    for _ in range(20):
        sample = host.step(sample, code=host.code(1.9e-3))
    assert port.device.phase == "armed"
    for _ in range(2):
        sample = host.step(sample, code=host.code(2.1e-3))
    assert sample.status & OVER_CURRENT
    assert sample.status & RELAY_CLOSED == 0
    assert sample.applied == 0
    assert port.device.current_peak_a < 2.2e-3
    assert port.device.current_a < 2e-3
    host.command(sample, code=100)
    assert host.error()[0] == STATE
    assert host.sample().status & OVER_CURRENT
    assert port.device.current_a == 0.0


def test_the_charge_cap_acts_at_the_boundary_of_the_sample_that_reaches_it():
    host, port = sim()
    host.hello()
    cap = int(50e-6 / host.info.range[2]["current_lsb_fa"] * 1e15 / 1e-3 * 65536)
    sample = host.start(charge=cap)
    code = host.code(2e-3)
    counts = []
    while not sample.status & CHARGE_CAP:
        sample = host.step(sample, code=code)
        counts.append(port.device.absolute_codes)
    reached = [count for count in counts if count >= cap]
    assert counts[-3] < cap <= counts[-2]
    assert len(reached) == 2
    assert sample.applied == 0
    assert port.device.phase == "tripped"
    assert port.device.absolute_charge_c == pytest.approx(50e-6, abs=2.2e-6)


def test_the_session_time_cap_ends_the_session():
    host, port = sim()
    sample = host.start(ticks=50)
    while not sample.status & TIME_CAP:
        sample = host.step(sample, code=1000)
    assert sample.index == 50
    assert port.device.phase == "tripped"


def test_the_device_counts_every_armed_sample_exactly():
    host, _ = sim(seed=3)
    sample = host.start()
    offset = host.used["current_offset_q16"]
    net = absolute = 0
    for k in range(300):
        charge = sample.current * 65536 - offset
        net += charge
        absolute += abs(charge)
        assert sample.charge == net
        sample = host.step(sample, code=3000 if k % 100 < 50 else -3000)
    charge = sample.current * 65536 - offset
    host.send(struct.pack("<BBHI", 4, 0, 0, TOKEN))
    done = host.counters(0x84)
    assert (done.net, done.absolute, done.samples) == (net + charge, absolute + abs(charge), 301)
    assert (done.token, done.late, done.lapsed, done.refused, done.bad_frames) == (TOKEN, 0, 0, 0, 0)


@pytest.mark.parametrize("range_", [0, 1, 2, 3])
def test_the_devices_count_and_the_true_charge_agree(range_):
    host, port = sim(seed=2, active_area_cm2=100.0, return_area_cm2=100.0)
    sample = host.start(range_=range_)
    code = host.code(0.8e-9 * host.used["full_scale_na"])
    for k in range(2000):
        sample = host.step(sample, code=code * min(k, 500) // 500)
    assert host.coulombs(port.device.net_codes) == pytest.approx(port.device.charge_c, rel=1e-3)


def test_disarming_needs_the_token_and_leaves_nothing_flowing():
    host, port = sim()
    sample = host.start()
    for _ in range(10):
        sample = host.step(sample, code=5000)
    host.send(struct.pack("<BBHI", 4, 0, 0, TOKEN + 1))
    assert host.error() == (TOKEN_ERROR, 0x04, NONE)
    host.send(struct.pack("<BBHI", 4, 0, 0, TOKEN))
    assert host.counters(0x84).status == 0
    assert (port.device.phase, port.device.relay_closed, port.device.current_a) == ("idle", False, 0.0)
    host.arm()
    assert host.error()[0] == STATE


# ---- faults ----------------------------------------------------------------------------------------------------------


def run(host: Host, sample: Sample, ticks: int, code: int) -> list[Sample]:
    seen = []
    for _ in range(ticks):
        sample = host.step(sample, code=code)
        seen.append(sample)
    return seen


def test_scripted_lead_faults_come_at_their_tick_and_go_again():
    host, port = sim(faults=["close@0.5", "open@0.4", "short@0.6"])
    seen = run(host, host.start(), 700, 12_000)
    current = [sample.current for sample in seen]
    # seen[k] is sample k + 1; the period of sample 400 starts at 0.4 s.
    assert current[398] > 11_000
    assert all(abs(code) < 20 and seen[399 + k].status & COMPLIANCE for k, code in enumerate(current[399:499]))
    assert current[500] > 11_000
    assert abs(seen[-1].voltage) < 100 < abs(seen[598].voltage)
    assert current[-1] > 11_000
    assert abs(port.device.current_a) < 1e-4


def test_scripted_loss_of_contact_raises_the_voltage_and_not_the_current():
    host, port = sim(faults=["area=0.5@1"])
    seen = run(host, host.start(), 1100, 20_000)
    assert port.device.contact_fraction == 0.5
    assert seen[-1].current == pytest.approx(seen[998].current, abs=10)
    assert abs(seen[-1].voltage) > 1.1 * abs(seen[998].voltage)


def test_samples_of_a_stall_are_never_sent():
    host, port = sim(faults=["stall@0.1+0.02"])
    seen = run(host, host.start(), 150, 1000)
    indices = [sample.index for sample in seen]
    assert indices == [*range(1, 100), *range(120, 171)]
    assert port.device.phase == "armed"


def test_a_stuck_output_is_still_cut_off_by_the_relay():
    host, port = sim(faults=["stuck@0.1"])
    run(host, host.start(), 120, 5000)
    port.device.advance(80)
    assert port.device.phase == "expired"
    assert port.device.current_a > 0.0
    port.device.advance(11)
    assert port.device.current_a == 0.0


def test_after_unplugging_the_clock_runs_through_the_lapse_and_the_port_is_dead():
    host, port = sim(faults=["unplug@0.1"])
    sample = host.start()
    with pytest.raises(AssertionError, match="nothing came"):
        run(host, sample, 200, 5000)
    assert port.device.phase == "armed"
    port.close()
    assert (port.device.phase, port.device.current_a, port.device.relay_closed) == ("idle", 0.0, False)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("open@60", ("open", 0.0, 60.0)),
        ("close@60.5", ("close", 0.0, 60.5)),
        ("area=0.5@60", ("area", 0.5, 60.0)),
        ("stall@60+0.02", ("stall", 0.02, 60.0)),
    ],
)
def test_a_fault_script_is_understood(text, fault):
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    "text",
    ["", "open", "open@", "open@x", "melt@60", "area@60", "area=x@60", "stall@60", "open=1@60", "open@60+1", "open@-1",
     "open@nan", "area=nan@1", "open@1e300", "open@60@61"],
)  # fmt: skip
def test_a_fault_that_is_not_understood_is_named(text):
    with pytest.raises(ValueError, match="is not understood"):
        parse_fault(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skin": "silk"}, "silk"),
        ({"sample_rate_hz": 100.0}, "sample rate"),
        ({"sample_rate_hz": float("nan")}, "sample rate"),
        ({"front_end": "charge"}, "front-end"),
        ({"pacing": "never"}, "pacing"),
        ({"active_area_cm2": 0.0}, "active area"),
        ({"compliance_v": 400.0}, "compliance"),
        ({"faults": ["area=2@1"]}, "area"),
        ({"serial": "x" * 16}, "serial"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        SimPort(**options)


# ---- the port inside this process ------------------------------------------------------------------------------------


def test_the_capsule_is_a_port_that_never_waits():
    class Port(ctypes.Structure):
        _fields_ = (
            ("version", ctypes.c_uint32),
            ("size", ctypes.c_uint32),
            ("context", ctypes.c_void_p),
            ("read", ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_void_p] * 2, ctypes.c_size_t, ctypes.c_int64)),
            ("write", ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_void_p] * 2, ctypes.c_size_t)),
        )

    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    simulated = SimPort(faults=["unplug@0.05"])
    capsule = simulated.capsule
    port = Port.from_address(pointer(capsule, b"ionto_rt.core.types.Port"))
    assert (port.version, port.size) == (1, ctypes.sizeof(Port))
    buffer = ctypes.create_string_buffer(65536)
    address = ctypes.addressof(buffer)

    def read() -> bytes:
        count = port.read(port.context, address, len(buffer), 1000)
        return buffer.raw[: max(count, 0)]

    host = Host(read, lambda data: port.write(port.context, data, len(data)))
    assert port.read(port.context, address, len(buffer), 1000) == -errno.ETIMEDOUT
    assert port.read(port.context, address, len(buffer), 0) == 0
    sample = host.start()
    for _ in range(49):
        sample = host.step(sample, code=1000)
    host.command(sample, code=1000)
    assert port.read(port.context, address, len(buffer), 1000) == -errno.EIO
    assert port.write(port.context, b"x", 1) == -errno.EIO
    assert simulated.device.phase == "idle"
    del simulated
    assert port.read(port.context, address, len(buffer), 0) == -errno.EIO


# ---- truth and state -------------------------------------------------------------------------------------------------


def test_the_truth_file_tells_what_flowed(tmp_path):
    path = tmp_path / "truth.csv"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    host, port = sim(truth_fd=fd, noise_codes=0.0)
    run(host, host.start(), 500, 10_000)
    host.send(struct.pack("<BBHI", 4, 0, 0, TOKEN))
    os.close(fd)
    table = rows(path)
    assert [row["index"] for row in table] == list(range(502))
    assert table[-1]["current_a"] == 0.0 == table[-1]["relay_closed"]
    assert table[-1]["charge_c"] == pytest.approx(port.device.charge_c, rel=1e-9)
    assert sum(row["current_a"] for row in table) * 1e-3 == pytest.approx(port.device.charge_c, rel=1e-8)
    assert [row["device_time_s"] for row in table[:3]] == pytest.approx([0.001, 0.002, 0.003], rel=1e-9)
    assert all(row["current_peak_a"] >= abs(row["current_a"]) * (1 - 1e-9) for row in table)
    assert {row["lease_ticks_left"] for row in table[3:-1]} == {80.0}


def test_the_device_remembers_its_last_session_across_a_restart(tmp_path):
    path = tmp_path / "state.json"
    host, port = sim(state=path, serial="VD-9")
    run(host, host.start(range_=1), 700, 10_000)
    port.close()
    kept = read_state(path)
    assert kept == {
        "serial": "VD-9", "token": TOKEN, "range": 1, "samples": port.device.samples,
        "net_codes": port.device.net_codes, "absolute_codes": port.device.absolute_codes,
    }  # fmt: skip
    hello = sim(state=path)[0].hello()
    assert (hello.serial, hello.last_token, hello.last_range) == ("VD-9", TOKEN, 1)
    assert (hello.last_net, hello.last_absolute) == (port.device.net_codes, port.device.absolute_codes)
    assert hello.last_samples == port.device.samples > 700
    with pytest.raises(ValueError, match="VD-9"):
        SimPort(state=path, serial="VD-8")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1, "serial": 3}', '{"format": 2}'])
def test_a_file_that_is_no_state_is_refused_by_its_path(tmp_path, text):
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"state\.json: not the state"):
        SimPort(state=path)


# ---- as a process on a pseudo-terminal -------------------------------------------------------------------------------


def test_a_lock_step_host_that_falls_silent_is_cut_off_within_its_lease(device):
    host, process, truth, state = device(serial="VD-1")
    sample = host.start()
    code = host.code(2e-3)
    for k in range(2000):
        sample = host.step(sample, code=code * min(k, 200) // 200, lease=80)
        assert sample.index == k + 1
    assert process.wait(10) == 0
    table = rows(truth)
    assert [row["index"] for row in table] == list(range(len(table)))
    # The last command answers sample 1999 and acts at boundary 2000; its lease covers 80 periods.
    assert table[1990]["current_a"] == pytest.approx(1.015 * 2e-3, rel=1e-3)
    assert abs(table[2080]["current_a"]) > 1e-3
    assert all(abs(row["current_a"]) < 1e-6 for row in table[2082:])
    # The lease ends at boundary 2080 and the relay opens 10 ms later; one row more shows it open.
    assert [row["relay_closed"] for row in table[2080:]] == [1.0] * 11 + [0.0]
    assert table[-1]["lapsed"] == 1.0
    kept = json.loads(state.read_text())
    assert (kept["serial"], kept["token"], kept["range"]) == ("VD-1", TOKEN, 2)
    assert host.coulombs(kept["net_codes"]) == pytest.approx(table[-1]["charge_c"], rel=1e-3)
    with pytest.raises(OSError, match="Input/output error"):
        os.write(host.fd, b"x")
    os.close(host.fd)


def test_a_host_that_hangs_up_is_cut_off_within_its_lease(device):
    host, process, truth, _ = device()
    sample = host.start()
    for _ in range(300):
        sample = host.step(sample, code=10_000, lease=50)
    os.close(host.fd)
    assert process.wait(10) == 0
    table = rows(truth)
    last = max(row["index"] for row in table if abs(row["current_a"]) > 1e-6)
    assert last <= 300 + 50 + 1
    assert table[-1]["relay_closed"] == 0.0
    assert table[-1]["current_a"] == 0.0


KILLED_HOST = """
import sys
sys.path.insert(0, {folder!r})
from test_virtual_device import Host, open_port
host = open_port({port!r})
sample = host.start(pacing={pacing})
for k in range(10**9):
    sample = host.step(sample, code=10_000, lease=80)
    if k == 200:
        print("flowing", flush=True)
"""


def open_port(path: str) -> Host:
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
    return Host(lambda: os.read(fd, 65536), lambda data: os.write(fd, data))


@pytest.mark.parametrize("pacing", [REAL, LOCK_STEP])
def test_kill_9_of_the_host_leaves_no_current_100_ms_later(device, pacing):
    host, process, truth, state = device()
    script = KILLED_HOST.format(folder=str(Path(__file__).parent), port=host.ready["port"], pacing=pacing)
    victim = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert victim.stdout.readline() == b"flowing\n"
    os.close(host.fd)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert process.wait(10) == 0
    table = rows(truth)
    renewed = max(row["index"] for row in table if row["lease_ticks_left"] == 80.0)
    assert renewed > 200
    assert all(abs(row["current_a"]) < 1e-6 for row in table if row["index"] > renewed + 100)
    assert table[-1]["relay_closed"] == 0.0
    assert table[-1]["index"] > renewed + 80
    assert json.loads(state.read_text())["samples"] == len(table)


def test_in_real_time_the_device_keeps_the_pace_by_itself(device):
    host, _, _, _ = device(truth=os.devnull)
    sample = host.start(pacing=REAL)
    start, first = time.monotonic(), sample
    while sample.index < 1500:
        new = host.step(sample, code=1000)
        assert new.index >= sample.index + 1
        sample = new
    elapsed_us = 1e6 * (time.monotonic() - start)
    assert sample.time_us - first.time_us == pytest.approx(elapsed_us, abs=60_000)
    os.close(host.fd)


def test_in_real_time_a_silent_host_is_cut_off_on_the_devices_clock_and_is_told(device):
    host, _, _, _ = device()
    sample = host.start(pacing=REAL)
    host.command(sample, code=10_000, lease=40)
    seen = []
    while not seen or seen[-1].status & RELAY_CLOSED or not seen[-1].status & EXPIRED:
        seen.append(host.sample())
    flowing = [sample for sample in seen if sample.applied == 10_000]
    assert len(flowing) == 40
    assert [sample.index for sample in seen] == list(range(1, len(seen) + 1))
    expired = [sample for sample in seen if sample.status & EXPIRED and sample.status & RELAY_CLOSED]
    assert len(expired) == 10
    os.close(host.fd)


def test_it_keeps_up_with_10_khz(device):
    host, _, _, _ = device(sample_rate_hz=10_000.0)
    first = host.start(pacing=REAL)
    start = time.monotonic()
    count = 0
    sample = first
    while sample.index < 10_000:
        sample = host.sample()
        count += 1
    elapsed_s = time.monotonic() - start
    assert count == sample.index
    assert elapsed_s == pytest.approx(1.0, abs=0.2)
    os.close(host.fd)


def test_an_unplugged_device_hangs_up(device):
    host, process, truth, _ = device(faults=["unplug@0.2"])
    sample = host.start()
    with pytest.raises(OSError, match="Input/output error"):
        run(host, sample, 10_000, 5000)
    assert process.wait(10) == 0
    assert rows(truth)[-1]["relay_closed"] == 0.0
    os.close(host.fd)


def test_the_terminal_is_raw_and_passes_every_byte(device):
    host, _, _, _ = device()
    flags = termios.tcgetattr(host.fd)
    assert not flags[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
    assert not flags[1] & termios.OPOST
    assert not flags[0] & (termios.IXON | termios.ICRNL)
    os.close(host.fd)


def test_a_symbolic_link_leads_to_the_port_and_goes_with_it(device, tmp_path):
    link = tmp_path / "port"
    host, process, _, _ = device(link=str(link))
    assert str(link.readlink()) == host.ready["port"]
    host.hello()
    os.close(host.fd)
    assert process.wait(10) == 0
    assert not link.is_symlink()


def test_sigterm_ends_it_in_order(device):
    host, process, truth, _ = device()
    sample = host.start(pacing=REAL)
    for _ in range(50):
        sample = host.step(sample, code=5000)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert rows(truth)[-1]["relay_closed"] == 0.0
    os.close(host.fd)


def test_kept_alive_it_serves_one_host_after_the_other(device):
    host, process, _, _ = device(keep=True)
    run(host, host.start(), 100, 1000)
    os.close(host.fd)
    again = open_port(host.ready["port"])
    hello = again.hello()
    assert hello.last_token == TOKEN
    assert hello.last_samples > 100
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0


def test_it_ends_with_a_parent_that_dies_before_any_host_spoke(tmp_path):
    options = json.dumps({"truth": str(tmp_path / "truth.csv")})
    parent = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-m', 'ionto_rt.virtual_device', {options!r}],"
        " stdout=subprocess.PIPE)\n"
        "sys.stdout.write(child.stdout.readline().decode())\n"
    )
    line = subprocess.run([sys.executable, "-c", parent], capture_output=True, check=True).stdout
    pid = json.loads(line)["pid"]
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        select.select([], [], [], 0.02)
    raise AssertionError(f"process {pid} is still there")


def test_bad_options_are_one_line_and_exit_code_2(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "ionto_rt.virtual_device", '{"skin": "silk"}'], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "silk" in done.stderr
    file = tmp_path / "link"
    file.write_text("")
    with pytest.raises(ValueError, match="no symbolic link"):
        serve(link=file)
    assert file.read_text() == ""


def test_a_device_whose_host_died_before_it_began_ends_by_itself() -> None:
    """Its parent is another process by then: the host's own number is what it was given."""
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    command = [sys.executable, "-m", "ionto_rt.virtual_device", json.dumps({"parent": gone.pid})]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as device:
        assert device.wait(20) == 0
