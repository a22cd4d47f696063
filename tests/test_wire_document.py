"""The protocol page is complete: a coder made of nothing but its tables reads and writes its own example frames.

The coder here shares no code with the project (struct, zlib and a COBS of its own). It takes names, types and offsets
from the page, so a table that is wrong, or leaves a byte out, cannot be read.
"""

import re
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from ionto_rt.core import wire
from ionto_rt.core.virtual_device import VirtualDevice
from ionto_rt.device import parse_hello

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "wire-protocol.md").read_text()

TYPES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i8": "b", "i16": "h", "i32": "i", "i64": "q", "16s": "16s"}
SAME_LAYOUT = {"LIMITS_READ_BACK": "LIMITS", "ARMED": "ARM", "COUNTERS": "DISARMED"}
REPEATED = {"Per range": "ranges", "Per channel": "channels"}
APPENDED = re.compile(r"^Behind (?:the last \w+|these), (\d+) bytes( per channel)?( from channel 1 on)?[:,].*\n", re.M)
MAX_PAYLOAD = 1024

Value = int | str


@dataclass
class Tail:
    """What is appended, once or for each channel from `first` on."""

    fields: list[tuple[int, str, str]]
    bytes: int
    repeated: bool
    first: int

    def times(self, channels: int) -> int:
        return channels - self.first if self.repeated else 1


@dataclass
class Layout:
    """Fields as (offset, type, name): the fixed part; the repeated block behind it, if the frame has one; and what is
    appended behind the last block.
    """

    fixed: list[tuple[int, str, str]] = field(default_factory=list)
    block: list[tuple[int, str, str]] = field(default_factory=list)
    fixed_bytes: int = 0
    block_bytes: int = 0
    repeated: str = ""
    tails: list[Tail] = field(default_factory=list)

    def places(
        self, blocks: int, tails: list[Tail], channels: int
    ) -> list[tuple[str, int, list[tuple[int, str, str]]]]:
        """(prefix of the names, offset, fields) of every part of a payload with so many blocks and these tails."""
        found = [("", 0, self.fixed)]
        for i in range(blocks):
            found.append((f"{self.repeated}[{i}].", self.fixed_bytes + i * self.block_bytes, self.block))
        behind = self.fixed_bytes + blocks * self.block_bytes
        for tail in tails:
            for i in range(tail.times(channels)):
                prefix = f"channels[{i + tail.first}]." if tail.repeated else ""
                found.append((prefix, behind, tail.fields))
                behind += tail.bytes
        return found


def width(kind: str) -> int:
    if kind.endswith(" bytes"):
        return int(kind.split()[0])
    return struct.calcsize("<" + TYPES[kind])


def table_after(text: str, header: str) -> list[list[str]]:
    """Rows of the first table in text whose header line begins with header; none if there is no such table."""
    rows: list[list[str]] = []
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(header):
            next(lines)
            break
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def section(name: str) -> str:
    found = re.search(rf"^### {name} 0x[0-9A-F]{{2}}\n(.*?)(?=^##)", PAGE, re.M | re.S)
    assert found, f"no section on {name}"
    return found[1]


def frame_types() -> dict[str, int]:
    return {row[1]: int(row[0], 16) for row in table_after(PAGE, "| type | name | direction |")}


def fields_of(rows: list[list[str]]) -> tuple[list[tuple[int, str, str]], int]:
    """Fields of a table, and its bytes; each must begin where the one before ends."""
    fields, at = [], 0
    for offset, kind, name, *_ in rows:
        assert int(offset.lstrip("+")) == at, f"{name} stands at {offset}, the field before it ends at {at}"
        fields.append((at, kind, name))
        at += width(kind)
    return fields, at


def layout(name: str) -> Layout:
    text = section(SAME_LAYOUT.get(name, name))
    result = Layout()
    result.fixed, result.fixed_bytes = fields_of(table_after(text, "| offset | type |"))
    for opening, repeated in REPEATED.items():
        found = re.search(rf"^{opening}, (\d+) bytes, from offset (\d+):\n(.*)", text, re.M | re.S)
        if found:
            result.block, result.block_bytes = fields_of(table_after(found[3], "| offset | type |"))
            result.repeated = repeated
            assert result.block_bytes == int(found[1])
            assert result.fixed_bytes == int(found[2])
    for found in APPENDED.finditer(text):
        fields, total = fields_of(table_after(text[found.end() :], "| offset | type |"))
        assert total == int(found[1])
        result.tails.append(Tail(fields, total, bool(found[2]), 1 if found[3] else 0))
    return result


def examples() -> list[tuple[str, str, dict[str, Value]]]:
    """(name, hex, values) of every worked example."""
    found = []
    for name, block, rest in re.findall(r"^```hex ([A-Z_]+)\n(.*?)```\n(.*?)(?=^##|^```|\Z)", PAGE, re.M | re.S):
        values: dict[str, Value] = {}
        for key, text in table_after(rest, "| field | value |"):
            values[key] = text if key in ("model", "serial") else int(text, 0)
        found.append((name, block, values))
    return found


def cobs_encode(data: bytes) -> bytes:
    """Groups of at most 254 bytes that hold no zero, each led by its length plus one."""
    out = bytearray()
    groups = data.split(b"\0")
    for number, group in enumerate(groups):
        last = number == len(groups) - 1
        while len(group) >= 254:
            out += b"\xff" + group[:254]
            group = group[254:]
            if last and not group:
                return bytes(out)
        out += bytes([len(group) + 1]) + group
    return bytes(out)


def cobs_decode(data: bytes) -> bytes:
    out = bytearray()
    at = 0
    while at < len(data):
        code = data[at]
        group = data[at + 1 : at + code]
        if code == 0 or len(group) != code - 1 or 0 in group:
            raise ValueError(f"code byte {code} at {at}")
        out += group
        at += code
        if code != 0xFF and at < len(data):
            out.append(0)
    return bytes(out)


def frame_of(payload: bytes) -> bytes:
    return cobs_encode(payload + struct.pack("<I", zlib.crc32(payload))) + b"\0"


def payload_of(frame: bytes) -> bytes:
    assert frame[-1] == 0
    assert 0 not in frame[:-1]
    data = cobs_decode(frame[:-1])
    payload, crc = data[:-4], struct.unpack("<I", data[-4:])[0]
    assert crc == zlib.crc32(payload)
    return payload


def unpack_field(payload: bytes, offset: int, kind: str) -> Value:
    value = struct.unpack_from("<" + TYPES[kind], payload, offset)[0]
    return value.rstrip(b"\0").decode("ascii") if isinstance(value, bytes) else int(value)


def decode(name: str, payload: bytes, channels: int = 1) -> dict[str, Value]:
    """Every field of a payload but the reserved ones, which must be zero. `channels` as the device's hello says."""
    plan = layout(name)
    values: dict[str, Value] = {}
    counted = {field_name: payload[offset] for offset, _, field_name in plan.fixed if field_name in REPEATED.values()}
    channels = counted.get("channels", channels)
    blocks = {"": 0, "channels": channels, **counted}[plan.repeated]
    behind = plan.fixed_bytes + blocks * plan.block_bytes
    tails = []
    for tail in plan.tails:
        if len(payload) > behind:
            tails.append(tail)
            behind += tail.times(channels) * tail.bytes
    assert len(payload) == behind
    for prefix, base, fields in plan.places(blocks, tails, channels):
        for offset, kind, field_name in fields:
            if field_name == "reserved":
                assert not any(payload[base + offset : base + offset + width(kind)])
            else:
                values[prefix + field_name] = unpack_field(payload, base + offset, kind)
    return values


def channels_of(values: dict[str, Value]) -> int:
    """How many channels the values of an example are of."""
    named = [int(found[1]) for key in values if (found := re.match(r"channels\[(\d+)\]", key))]
    return int(values.get("channels", 1 + max(named, default=0)))


def encode(name: str, values: dict[str, Value]) -> bytes:
    plan = layout(name)
    channels = channels_of(values)
    blocks = len({key.split(".")[0] for key in values if key.startswith(f"{plan.repeated}[")}) if plan.block else 0
    tails = [
        tail
        for tail in plan.tails
        if any(
            (f"channels[{channels - 1}]." if tail.repeated else "") + field_name in values
            for _, _, field_name in tail.fields
            if tail.times(channels) > 0
        )
    ]
    payload = bytearray(
        plan.fixed_bytes + blocks * plan.block_bytes + sum(tail.times(channels) * tail.bytes for tail in tails)
    )
    for prefix, base, fields in plan.places(blocks, tails, channels):
        for offset, kind, field_name in fields:
            if field_name != "reserved":
                value = values[prefix + field_name]
                packed = value.encode("ascii") if isinstance(value, str) else value
                struct.pack_into("<" + TYPES[kind], payload, base + offset, packed)
    return bytes(payload)


def enumeration(module: str, name: str) -> dict[str, int]:
    """Members of an enum of a .pxd, without their common prefix."""
    text = (ROOT / "src/ionto_rt/core" / f"{module}.pxd").read_text()
    found = re.search(rf"^cdef enum {name}:.*?\n((?:    .*\n)+)", text, re.M)
    assert found, f"no enum {name} in {module}.pxd"
    members = re.findall(r"^    (\w+) = (0x[0-9A-Fa-f]+|\d+)", found[1], re.M)
    return {member.split("_", 1)[1]: int(value, 0) for member, value in members}


EXAMPLES = examples()
NAMES = [f"{name}-{number}" for number, (name, _, _) in enumerate(EXAMPLES)]


def test_every_frame_has_a_worked_example() -> None:
    assert {name for name, _, _ in EXAMPLES} == set(frame_types())


@pytest.mark.parametrize("name, text, values", EXAMPLES, ids=NAMES)
def test_example_frames_hold_the_values_stated_beside_them(name: str, text: str, values: dict[str, Value]) -> None:
    payload = payload_of(bytes.fromhex(text))
    assert payload[0] == frame_types()[name]
    assert decode(name, payload, channels_of(values)) == values


@pytest.mark.parametrize("name, text, values", EXAMPLES, ids=NAMES)
def test_the_stated_values_make_the_example_frames(name: str, text: str, values: dict[str, Value]) -> None:
    assert frame_of(encode(name, values)).hex(" ") == " ".join(text.split())


def test_stated_lengths_are_those_of_the_tables() -> None:
    for row in table_after(PAGE, "| type | name | direction |"):
        plan = layout(row[1])
        stated = f"{plan.fixed_bytes}"
        if plan.block:
            stated += f" + {plan.block_bytes} per {plan.repeated.rstrip('s')}"
        assert row[3] == stated, row[1]


def test_no_payload_outgrows_the_frame() -> None:
    for name, most in (("HELLO", 29), ("LIMITS", 32), ("SAMPLE", 32), ("COMMAND", 32)):
        plan = layout(name)
        assert plan.fixed_bytes + most * plan.block_bytes <= MAX_PAYLOAD
    assert layout("HELLO").fixed_bytes + 30 * layout("HELLO").block_bytes > MAX_PAYLOAD
    hello = layout("HELLO")
    for ranges, channels, fits in ((28, 1, True), (29, 1, False), (13, 32, True), (14, 32, False)):
        appended = sum(tail.times(channels) * tail.bytes for tail in hello.tails)
        assert (hello.fixed_bytes + ranges * hello.block_bytes + appended <= MAX_PAYLOAD) == fits
    for name in ("SAMPLE", "COMMAND", "DISARMED"):
        plan = layout(name)
        appended = sum(tail.times(32) * tail.bytes for tail in plan.tails)
        assert plan.fixed_bytes + 32 * plan.block_bytes + appended <= MAX_PAYLOAD
    assert len(frame_of(b"\xff" * MAX_PAYLOAD)) <= 1034


def test_frames_of_32_channels_are_as_short_as_stated() -> None:
    sample, command = layout("SAMPLE"), layout("COMMAND")
    nothing = bytes([0xFF] * (sample.fixed_bytes + 32 * sample.block_bytes))
    assert len(frame_of(nothing)) == 857
    assert len(frame_of(bytes([0xFF] * (command.fixed_bytes + 32 * command.block_bytes + 4)))) == 152


def test_frames_of_one_channel_are_as_short_as_stated() -> None:
    lengths = {name: len(bytes.fromhex(text)) for name, text, _ in reversed(EXAMPLES)}
    assert lengths["SAMPLE"] == 48
    assert lengths["COMMAND"] == 24
    (with_sentinel,) = [text for _, text, values in EXAMPLES if "channels[0].sentinel_code" in values]
    assert len(bytes.fromhex(with_sentinel)) == 52


def test_check_value_of_the_crc() -> None:
    assert zlib.crc32(b"123456789") == 0xCBF43926
    assert "0xCBF43926" in PAGE


def test_cobs_table() -> None:
    rows = table_after(PAGE, "| data (hex) |")
    assert len(rows) == 4
    for data, stuffed in rows:
        assert cobs_encode(bytes.fromhex(data)) + b"\0" == bytes.fromhex(stuffed)
        assert cobs_decode(bytes.fromhex(stuffed)[:-1]) == bytes.fromhex(data)


@pytest.mark.parametrize("length", [*range(6), *range(250, 260), *range(504, 512), 1028])
@pytest.mark.parametrize("end", [b"", b"\0", b"\0\0"])
def test_cobs_of_this_coder_is_its_own_inverse(length: int, end: bytes) -> None:
    data = b"\x55" * length + end
    if data:
        assert 0 not in cobs_encode(data)
        assert cobs_decode(cobs_encode(data)) == data


def test_the_page_and_the_code_name_the_same_numbers() -> None:
    assert frame_types() == enumeration("wire", "FrameType")
    errors = {row[1]: int(row[0]) for row in table_after(PAGE, "| error | name |")}
    assert errors == {name.removeprefix("ERROR_"): code for name, code in enumeration("wire", "WireError").items()}
    status = {row[1]: int(row[0]) for row in table_after(PAGE, "| status bit | name |")}
    assert status == enumeration("types", "DeviceStatus")
    features = dict(re.findall(r"\b(\d+), ([A-Z_]+): ", section("HELLO")))
    assert {name: int(bit) for bit, name in features.items()} == enumeration("wire", "HelloFeature")


@pytest.mark.parametrize("name, text, values", EXAMPLES, ids=NAMES)
def test_the_compiled_coder_reads_and_writes_the_same_frames(name: str, text: str, values: dict[str, Value]) -> None:
    frame = bytes.fromhex(text)
    payload = payload_of(frame)
    assert wire.encode_frame(payload) == frame
    reader = wire.FrameReader()
    assert reader.feed(b"\x01\x02noise\0" + frame[:5]) == []
    assert reader.feed(frame[5:] + frame) == [payload, payload]
    assert reader.bad_frames == 1


@pytest.mark.parametrize("text, values", [(text, values) for name, text, values in EXAMPLES if name == "SAMPLE"])
def test_the_compiled_reader_finds_the_stated_values_of_a_sample(text: str, values: dict[str, Value]) -> None:
    payload, sentinel = payload_of(bytes.fromhex(text)), "channels[0].sentinel_code" in values
    channels = wire.unpack_sample(payload, sentinel)
    assert wire.pack_sample(channels, sentinel) == payload
    assert len(channels) == values["channels"]
    for number, channel in enumerate(channels):
        stated: dict[str, Value] = {"sentinel_code": 0}
        stated |= {key: values[key] for key in ("index", "device_time_us", "applied_index", "nonce")}
        stated |= {k.split(".")[1]: v for k, v in values.items() if k.startswith(f"channels[{number}].")}
        assert channel == stated


@pytest.mark.parametrize("text, values", [(text, values) for name, text, values in EXAMPLES if name == "COMMAND"])
def test_the_compiled_reader_finds_the_stated_values_of_a_command(text: str, values: dict[str, Value]) -> None:
    payload, count = payload_of(bytes.fromhex(text)), channels_of(values)
    channels = wire.unpack_command(payload, count)
    assert wire.pack_command(channels) == payload
    assert len(channels) == count
    relays = int(values.get("relays", values["flags"]))
    for number, channel in enumerate(channels):
        assert channel.pop("code") == values[f"channels[{number}].output_code"]
        assert channel.pop("flags") == relays >> number & 1
        assert channel == {key: values[key] for key in ("index", "token", "nonce", "lease_ticks")}


@pytest.mark.parametrize("text, values", [(text, values) for name, text, values in EXAMPLES if name == "HELLO"])
def test_the_host_takes_the_stated_calibration_from_the_example_hello(text: str, values: dict[str, Value]) -> None:
    hello = parse_hello(payload_of(bytes.fromhex(text)))
    assert (hello.model, hello.serial) == (values["model"], values["serial"])
    assert hello.last_net_codes == values["last_net_codes"]
    assert hello.channels == values["channels"] == len(hello.last_channel_charges)
    for number, charges in enumerate(hello.last_channel_charges):
        prefix = f"channels[{number}]." if number else ""
        assert charges == (values[f"{prefix}last_net_codes"], values[f"{prefix}last_absolute_codes"])
    assert len(hello.ranges) == values["ranges"]
    calibration = hello.calibration(0)
    assert calibration["current_offset_q16"] == values["ranges[0].current_offset_q16"]
    for key, field_name, unit in (
        ("current_lsb_a", "ranges[0].current_lsb_fa", 1e-15),
        ("redundant_lsb_a", "ranges[0].redundant_lsb_fa", 1e-15),
        ("output_lsb", "ranges[0].output_lsb", 1e-15),
        ("full_scale_a", "ranges[0].full_scale_na", 1e-9),
        ("voltage_lsb_v", "voltage_lsb_nv", 1e-9),
        ("compliance_v", "compliance_mv", 1e-3),
        ("tick_s", "sample_period_ns", 1e-9),
    ):
        assert calibration[key] == pytest.approx(int(values[field_name]) * unit, rel=1e-15), key
    sentinel_nv = int(values.get("sentinel_lsb_nv", 0))
    assert calibration["sentinel_lsb_v"] == pytest.approx(sentinel_nv * 1e-9, rel=1e-15)
    assert calibration["sentinel_offset_q16"] == values.get("sentinel_offset_q16", 0)


class StrangersHost:
    """A host that knows nothing but the page, talking to the virtual device."""

    TOKEN = 0x1C0FFEE6
    LIMITS: ClassVar[dict[str, Value]] = {
        "range": 0,
        "lease_max_ticks": 80,
        "token": TOKEN,
        "session_ticks_max": 100000,
        "channels[0].current_cap_code": 25000,
        "channels[0].output_code_min": -20000,
        "channels[0].output_code_max": 20000,
        "channels[0].charge_cap_codes": 1 << 50,
    }

    def __init__(self, channels: int = 1, pacing: int = 5) -> None:
        self.device = VirtualDevice(load=(1000.0, 1000.0, 1e-7), noise_codes=0.0, channels=channels, pacing=pacing)

    def say(self, name: str, **values: Value) -> list[tuple[str, dict[str, Value]]]:
        """Send a frame; the answers."""
        return self.say_payload(encode(name, {"type": frame_types()[name]} | values))

    def say_payload(self, payload: bytes) -> list[tuple[str, dict[str, Value]]]:
        self.device.receive(frame_of(payload))
        return self.heard()

    def heard(self) -> list[tuple[str, dict[str, Value]]]:
        names = {number: name for name, number in frame_types().items()}
        payloads = [payload_of(frame + b"\0") for frame in self.device.transmit().split(b"\0")[:-1]]
        return [(names[payload[0]], decode(names[payload[0]], payload, self.device.channels)) for payload in payloads]

    def next_sample(self) -> dict[str, Value]:
        """One sample period passes."""
        self.device.advance(1)
        ((name, values),) = self.heard()
        assert name == "SAMPLE"
        return {key.removeprefix("channels[0]."): value for key, value in values.items()}

    def arm(self, pacing: int = 1, **limits: Value) -> list[tuple[str, dict[str, Value]]]:
        self.say(
            "LIMITS", **self.LIMITS | {f"channels[0].{k}" if k.endswith("codes") else k: v for k, v in limits.items()}
        )
        return self.say("ARM", pacing=pacing, token=self.TOKEN)

    def answer(self, sample: dict[str, Value], **other: Value) -> list[tuple[str, dict[str, Value]]]:
        """A command of code 1000 with the relay closed, for 5 ticks; `other` overrides its fields."""
        code = other.pop("code", 1000)
        command = {
            "flags": 1,
            "index": sample["index"],
            "token": self.TOKEN,
            "nonce": sample["nonce"],
            "lease_ticks": 5,
        }
        return self.say("COMMAND", **command | other | {"channels[0].output_code": code})

    def reach(self, state: str) -> dict[str, Value]:
        """Bring the device into a state; the newest sample, if there is one."""
        sample: dict[str, Value] = {"index": 0, "nonce": 0}
        if state == "configured":
            self.say("LIMITS", **self.LIMITS)
        elif state == "tripped":
            self.arm(session_ticks_max=3)
            sample = [self.next_sample() for _ in range(4)][-1]
        elif state in ("armed", "expired"):
            self.arm()
            sample = self.next_sample()
        if state == "expired":
            self.answer(sample, lease_ticks=1)
            sample = [self.next_sample() for _ in range(4)][-1]
        assert self.device.phase == state
        return sample


def state_table() -> list[tuple[str, str, str]]:
    """(frame, state, what the page says of it)."""
    states = [["idle"], ["configured"], ["armed"], ["expired", "tripped"]]
    cells = []
    for frame, *row in table_after(PAGE, "| frame | idle |"):
        cells += [(frame, state, cell) for group, cell in zip(states, row, strict=True) for state in group]
    return cells


@pytest.mark.parametrize("frame, state, stated", state_table())
def test_the_virtual_device_answers_as_the_state_table_says(frame: str, state: str, stated: str) -> None:
    host = StrangersHost()
    sample = host.reach(state)
    answer, _, after = stated.partition(" → ")
    fields: dict[str, dict[str, Value]] = {
        "HELLO_REQUEST": {"version": 1},
        "LIMITS": host.LIMITS,
        "ARM": {"pacing": 1, "token": host.TOKEN},
        "DISARM": {"token": host.TOKEN},
    }
    heard = host.answer(sample) if frame == "COMMAND" else host.say(frame, **fields.get(frame, {}))
    if answer == "acts":
        assert heard == []
        host.next_sample()
        assert host.device.applied_code == 1000
    else:
        name, _, code = answer.partition(" ")
        assert [(heard_name, values.get("code")) for heard_name, values in heard] == [
            (name, int(code) if code else None)
        ]
    assert host.device.phase == (after or state)


def provoke(host: StrangersHost, code: int) -> list[tuple[str, dict[str, Value]]]:
    """The mistake that the page says an error code stands for."""
    sample = host.reach("armed" if code in (1, 4, 5, 6, 7, 8) else "configured")
    if code == 1:
        host.device.receive(b"\x09nonsense\0")
        return host.heard()
    if code == 2:
        return host.say_payload(b"\x55")
    if code == 3:
        return host.say("HELLO_REQUEST", version=2)
    if code == 4:
        return host.say("LIMITS", **host.LIMITS)
    if code == 5:
        return host.answer(sample, token=host.TOKEN + 1)
    if code == 6:
        return host.answer(sample, nonce=int(sample["nonce"]) ^ 1)
    if code == 7:
        host.answer(sample)
        return host.answer(sample)
    if code == 8:
        return host.answer(sample, lease_ticks=81)
    if code == 9:
        return host.say("LIMITS", **host.LIMITS | {"lease_max_ticks": 101})
    return host.say("ARM", pacing=3, token=host.TOKEN)


@pytest.mark.parametrize("row", table_after(PAGE, "| error | name |"), ids=lambda row: row[1])
def test_the_virtual_device_refuses_each_mistake_by_its_name(row: list[str]) -> None:
    host = StrangersHost()
    ((name, values),) = provoke(host, int(row[0]))
    assert (name, values["code"]) == ("ERROR", int(row[0]))


def test_a_command_acts_one_boundary_after_its_sample_and_shows_in_the_second() -> None:
    host = StrangersHost()
    host.arm()
    host.answer(host.next_sample())
    samples = [host.next_sample() for _ in range(2)]
    assert [sample["applied_index"] for sample in samples] == [0xFFFFFFFF, 0]
    assert [sample["applied_code"] for sample in samples] == [0, 1000]
    assert not int(samples[1]["status"]) & 128


def test_a_command_that_misses_its_boundary_acts_at_the_next_and_is_counted_late() -> None:
    host = StrangersHost()
    host.arm()
    first = host.next_sample()
    host.next_sample()
    host.answer(first)
    samples = [host.next_sample() for _ in range(2)]
    assert [sample["applied_index"] for sample in samples] == [0xFFFFFFFF, 0]
    assert int(samples[1]["status"]) & 128
    ((_, counters),) = host.say("COUNTERS_REQUEST")
    assert counters["late"] == 1


def test_a_lease_of_five_ticks_holds_for_five_then_zero_then_the_relay() -> None:
    host = StrangersHost()
    host.arm()
    host.answer(host.next_sample(), lease_ticks=5)
    samples = {int(sample["index"]): sample for sample in (host.next_sample() for _ in range(25))}
    assert [k for k, sample in samples.items() if sample["applied_code"]] == [2, 3, 4, 5, 6]
    assert [k for k, sample in samples.items() if int(sample["status"]) & 4] == list(range(7, 26))
    assert [k for k, sample in samples.items() if int(sample["status"]) & 1] == list(range(2, 17))
    ((_, counters),) = host.say("COUNTERS_REQUEST")
    assert (counters["lapsed"], counters["status"]) == (1, 4)


def test_a_refused_command_leaves_the_lease_running() -> None:
    host = StrangersHost()
    host.arm()
    host.answer(host.next_sample(), lease_ticks=5)
    for _ in range(5):
        sample = host.next_sample()
        host.answer(sample, nonce=int(sample["nonce"]) ^ 1)
    assert host.next_sample()["applied_code"] == 1000
    assert host.next_sample()["applied_code"] == 0


@pytest.mark.parametrize("frame", [b"\x09nonsense\0", frame_of(b"\x55"), frame_of(b"\x06"), frame_of(b"\x01\x01")])
def test_in_lock_step_each_frame_good_or_bad_brings_exactly_one_sample(frame: bytes) -> None:
    host = StrangersHost()
    assert [name for name, _ in host.arm(pacing=4)] == ["ARMED", "SAMPLE"]
    for _ in range(3):
        host.device.receive(frame)
        assert [name for name, _ in host.heard()].count("SAMPLE") == 1


def test_a_command_beyond_the_pushed_limits_is_clamped_and_says_so() -> None:
    host = StrangersHost()
    host.arm()
    host.answer(host.next_sample(), code=20001)
    host.next_sample()
    sample = host.next_sample()
    assert sample["applied_code"] == 20000
    assert int(sample["status"]) & 64


def test_charge_is_the_sum_of_the_samples_and_its_cap_trips_at_its_sample() -> None:
    host = StrangersHost()
    ((_, hello),) = host.say("HELLO_REQUEST", version=1)
    offset = int(hello["ranges[0].current_offset_q16"])
    cap = 5000 * 65536
    host.arm(charge_cap_codes=cap)
    net = absolute = 0
    while host.device.phase == "armed":
        sample = host.next_sample()
        net += int(sample["current_code"]) * 65536 - offset
        absolute += abs(int(sample["current_code"]) * 65536 - offset)
        assert sample["charge_codes"] == net
        assert not int(sample["status"]) & 16
        assert (host.device.phase == "tripped") == (absolute >= cap)
        host.answer(sample)
    assert int(host.next_sample()["status"]) & 16


class StrangersChannels(StrangersHost):
    """The same host on a device of several channels that offers every pacing."""

    def __init__(self, pacing: int, channels: int = 3) -> None:
        super().__init__(channels, pacing=7)
        caps = {key.split(".")[1]: value for key, value in self.LIMITS.items() if "." in key}
        each = {f"channels[{c}].{key}": value for c in range(channels) for key, value in caps.items()}
        self.say("LIMITS", **self.LIMITS | each)
        self.newest = self.say("ARM", pacing=pacing, token=self.TOKEN)[-1][1]

    def command(self, codes: list[int], relays: int, **other: Value) -> list[tuple[str, dict[str, Value]]]:
        """A command for 5 ticks; what is heard, and its last sample is the newest."""
        head = {"index": self.newest["index"], "token": self.TOKEN, "nonce": self.newest["nonce"], "lease_ticks": 5}
        each = {f"channels[{c}].output_code": code for c, code in enumerate(codes)}
        heard = self.say("COMMAND", flags=int(relays > 0), relays=relays, **head | each | other)
        self.newest = [values for name, values in heard if name == "SAMPLE"][-1]
        return heard

    def now(self, field_name: str) -> list[Value]:
        return [self.newest[f"channels[{c}].{field_name}"] for c in range(self.device.channels)]


def test_each_channel_has_its_code_and_its_bit_of_relays() -> None:
    host = StrangersChannels(pacing=4)
    for _ in range(3):
        host.command([100, 200, 300], relays=0b110)
    assert host.now("applied_code") == [100, 200, 300]
    assert host.now("status") == [0, 1, 1]


def test_a_lapse_shows_in_every_channel_and_the_counts_are_of_each() -> None:
    host = StrangersChannels(pacing=4)
    for _ in range(3):
        host.command([100, -200, 300], relays=0b111)
    while not int(host.newest["channels[0].status"]) & 4:
        host.newest = next(values for name, values in host.say("COUNTERS_REQUEST") if name == "SAMPLE")
    assert host.now("status") == [5, 5, 5]
    assert host.now("applied_code") == [0, 0, 0]
    ((_, counters),) = host.say("DISARM", token=host.TOKEN)
    assert (counters["status"], counters["lapsed"]) == (4, 1)
    charges = [counters["net_codes"], counters["channels[1].net_codes"], counters["channels[2].net_codes"]]
    assert charges == host.now("charge_codes")
    ((_, hello),) = host.say("HELLO_REQUEST", version=1)
    assert [hello["last_net_codes"], *(hello[f"channels[{c}].last_net_codes"] for c in (1, 2))] == charges


def test_when_the_host_paces_each_command_good_or_bad_brings_exactly_one_sample_and_nothing_else_does() -> None:
    host = StrangersChannels(pacing=2)
    for frame in (b"\x09nonsense\0", frame_of(b"\x55"), frame_of(b"\x06"), frame_of(b"\x01\x01")):
        host.device.receive(frame)
        assert "SAMPLE" not in [name for name, _ in host.heard()]
    assert [name for name, _ in host.command([1, 2, 3], 7)] == ["SAMPLE"]
    assert [name for name, _ in host.command([1, 2, 3], 7, nonce=int(host.newest["nonce"]) ^ 1)] == ["ERROR", "SAMPLE"]


def test_when_the_host_paces_a_sample_stands_for_every_period_that_has_passed_on_the_timer() -> None:
    host = StrangersChannels(pacing=2)
    ((_, hello),) = host.say("HELLO_REQUEST", version=1)
    for passed in (1, 4, 1, 1):
        before, charges = int(host.newest["index"]), host.now("charge_codes")
        host.device.advance(passed)
        host.command([1000, -1000, 0], 7)
        assert int(host.newest["index"]) == before + passed
        for before_codes, codes, code in zip(charges, host.now("charge_codes"), host.now("current_code"), strict=True):
            one = int(code) * 65536 - int(hello["ranges[0].current_offset_q16"])
            assert int(codes) - int(before_codes) == passed * one
    assert host.now("status") == [1, 1, 1]
    host.device.advance(5)
    assert (host.device.phase, host.heard()) == ("expired", [])
    assert host.command([1000, -1000, 0], 7)[0][1]["code"] == 4
    assert host.now("status") == [5, 5, 5]
    assert host.now("applied_code") == [0, 0, 0]


def test_bytes_appended_to_a_payload_are_ignored() -> None:
    host = StrangersHost()
    host.say_payload(encode("LIMITS", {"type": 2} | host.LIMITS) + b"\x01\x02")
    assert host.device.phase == "configured"
    assert [name for name, _ in host.say_payload(b"\x01\x01\xff")] == ["HELLO"]


@pytest.mark.parametrize("name", ["HELLO_REQUEST", "LIMITS", "ARM", "DISARM", "COMMAND"])
def test_a_payload_too_short_for_its_type_is_undecodable(name: str) -> None:
    host = StrangersHost()
    host.reach("configured" if name in ("LIMITS", "ARM") else "armed")
    payload = payload_of(bytes.fromhex(next(text for example, text, _ in EXAMPLES if example == name)))
    ((heard, values),) = host.say_payload(payload[:-1])
    assert (heard, values["code"], values["offending_type"]) == ("ERROR", 1, payload[0])
