"""The wire: what is sent arrives unchanged, and what is corrupted is never taken for something else."""

import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionto_rt.core.wire import (
    FrameReader,
    crc32,
    encode_frame,
    pack_command,
    pack_sample,
    unpack_command,
    unpack_sample,
)

MAX_PAYLOAD = 1024

payloads = st.binary(min_size=1, max_size=MAX_PAYLOAD) | st.integers(250, 262).flatmap(
    lambda size: st.binary(min_size=size, max_size=size) | st.just(b"\1" * size) | st.just(b"\0" * size)
)


def unsigned(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, (1 << bits) - 1)


def signed(bits: int) -> st.SearchStrategy[int]:
    return st.integers(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


@st.composite
def samples(draw: st.DrawFn) -> list[dict[str, int]]:
    """Channels of one sample: they share what stands in the header."""
    header = {
        "index": draw(unsigned(32)),
        "device_time_us": draw(unsigned(32)),
        "applied_index": draw(unsigned(32)),
        "nonce": draw(unsigned(16)),
    }
    own = st.fixed_dictionaries(
        {
            "status": unsigned(16),
            "current_code": signed(32),
            "redundant_code": signed(32),
            "voltage_code": signed(32),
            "applied_code": signed(32),
            "charge_codes": signed(64),
            "sentinel_code": signed(32),
        }
    )
    return [header | one for one in draw(st.lists(own, min_size=1, max_size=32))]


@st.composite
def commands(draw: st.DrawFn) -> list[dict[str, int]]:
    header = {
        "index": draw(unsigned(32)),
        "token": draw(unsigned(32)),
        "nonce": draw(unsigned(16)),
        "lease_ticks": draw(unsigned(16)),
    }
    own = st.fixed_dictionaries({"code": signed(32), "flags": st.integers(0, 1)})
    return [header | one for one in draw(st.lists(own, min_size=1, max_size=32))]


@st.composite
def corruptions(draw: st.DrawFn, most: int = 6) -> list[tuple[str, int, bytes]]:
    """What may happen to bytes on the way: some flipped, some lost, some put in."""
    kinds = st.sampled_from(["flip", "delete", "insert"])
    return draw(st.lists(st.tuples(kinds, st.integers(0, 1 << 20), st.binary(min_size=1, max_size=8)), max_size=most))


def corrupt(data: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    found = bytearray(data)
    for kind, where, what in changes:
        at = where % (len(found) + 1)
        if kind == "insert":
            found[at:at] = what
        elif kind == "delete":
            del found[at : at + len(what)]
        else:
            for offset, mask in enumerate(what):
                if at + offset < len(found):
                    found[at + offset] ^= mask
    return bytes(found)


def feed_in_pieces(reader: FrameReader, data: bytes, sizes: list[int]) -> list[bytes]:
    found, at = [], 0
    for size in sizes:
        found += reader.feed(data[at : at + size])
        at += size
    return found + reader.feed(data[at:])


@given(st.binary(max_size=2000))
def test_the_crc_is_that_of_zlib(data: bytes) -> None:
    assert crc32(data) == zlib.crc32(data)


@given(payloads)
def test_a_frame_is_cobs_of_payload_and_crc(payload: bytes) -> None:
    cobs = pytest.importorskip("cobs.cobs")
    body = payload + zlib.crc32(payload).to_bytes(4, "little")
    frame = encode_frame(payload)
    assert frame == cobs.encode(body) + b"\0"
    assert frame.count(b"\0") == 1
    assert cobs.decode(frame[:-1]) == body


@given(st.lists(payloads, max_size=8), st.lists(st.integers(0, 300), max_size=20))
def test_payloads_arrive_in_order_however_the_bytes_are_cut(sent: list[bytes], sizes: list[int]) -> None:
    reader = FrameReader()
    stream = b"".join(encode_frame(payload) for payload in sent)
    assert feed_in_pieces(reader, stream, sizes) == sent
    assert (reader.frames, reader.bad_frames) == (len(sent), 0)


@given(
    st.lists(payloads, max_size=4),
    st.integers(1030, 1050) | st.integers(1, 5000),
    corruptions(),
    st.lists(st.integers(0, 1100), max_size=20),
)
def test_a_damaged_stream_gives_the_same_frames_and_counts_however_it_is_cut(
    sent: list[bytes], overlong: int, changes: list[tuple[str, int, bytes]], sizes: list[int]
) -> None:
    frames = [encode_frame(payload) for payload in sent]
    frames.insert(len(frames) // 2, b"\7" * overlong + b"\0")
    stream = corrupt(b"".join(frames), changes)
    whole, cut, bytewise = FrameReader(), FrameReader(), FrameReader()
    found = whole.feed(stream)
    assert feed_in_pieces(cut, stream, sizes) == found
    assert feed_in_pieces(bytewise, stream, [1] * len(stream)) == found
    counts = (whole.frames, whole.bad_frames)
    assert (cut.frames, cut.bad_frames) == (bytewise.frames, bytewise.bad_frames) == counts
    assert sum(counts) == len([piece for piece in stream.split(b"\0")[:-1] if piece])


def cobs_of(body: bytes) -> bytes:
    """The frame of a body of any length, a group at a time."""
    groups = []
    for piece in body.split(b"\0"):
        while len(piece) > 254:
            groups.append(b"\xff" + piece[:254])
            piece = piece[254:]
        groups.append(bytes([len(piece) + 1]) + piece)
    return b"".join(groups) + b"\0"


@given(st.integers(MAX_PAYLOAD - 20, MAX_PAYLOAD + 8), st.sampled_from([b"\1", b"\0", b"\1\0", b"\1" * 15 + b"\0"]))
def test_the_longest_payload_arrives_and_one_byte_more_is_refused(length: int, pattern: bytes) -> None:
    payload = (pattern * length)[:length]
    reader = FrameReader()
    found = reader.feed(cobs_of(payload + zlib.crc32(payload).to_bytes(4, "little")))
    good = length <= MAX_PAYLOAD
    assert found == ([payload] if good else [])
    assert (reader.frames, reader.bad_frames) == (good, not good)


@given(st.lists(payloads, min_size=1, max_size=6), corruptions(), payloads, st.lists(st.integers(0, 300), max_size=8))
def test_corrupted_bytes_never_make_a_payload_and_the_next_delimiter_heals(
    sent: list[bytes], changes: list[tuple[str, int, bytes]], last: bytes, sizes: list[int]
) -> None:
    """A payload that nobody sent would need a CRC collision, one in 2**32."""
    reader = FrameReader()
    stream = corrupt(b"".join(encode_frame(payload) for payload in sent), changes)
    found = feed_in_pieces(reader, stream, sizes)
    found += reader.feed(b"\0")
    assert all(payload in sent for payload in found)
    assert reader.feed(encode_frame(last)) == [last]
    assert reader.frames == len(found) + 1


@given(st.lists(payloads, min_size=3, max_size=6), st.data())
def test_one_damaged_frame_costs_no_other(sent: list[bytes], data: st.DataObject) -> None:
    """Bytes that change inside a frame, its delimiter aside, lose that frame alone."""
    frames = [encode_frame(payload) for payload in sent]
    victim = data.draw(st.integers(0, len(sent) - 1))
    damaged = bytearray(frames[victim])
    at = data.draw(st.integers(0, len(damaged) - 2))
    value = data.draw(st.integers(1, 255).filter(lambda byte: byte != damaged[at]))
    damaged[at] = value
    frames[victim] = bytes(damaged)
    reader = FrameReader()
    assert reader.feed(b"".join(frames)) == sent[:victim] + sent[victim + 1 :]
    assert reader.bad_frames == 1


@given(st.binary(max_size=6000))
def test_noise_is_no_frame(noise: bytes) -> None:
    reader = FrameReader()
    assert reader.feed(noise) == []
    assert reader.frames == 0
    assert reader.bad_frames <= noise.count(b"\0")


@given(st.integers(MAX_PAYLOAD + 1, 5 * MAX_PAYLOAD), payloads)
def test_an_endless_frame_is_skipped_to_its_delimiter(length: int, last: bytes) -> None:
    reader = FrameReader()
    assert reader.feed(b"\1" * (length + 64) + b"\0") == []
    assert reader.bad_frames == 1
    assert reader.feed(encode_frame(last)) == [last]


@pytest.mark.parametrize("length", [0, MAX_PAYLOAD + 1])
def test_a_payload_of_a_length_that_no_frame_has_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"payload of {length} bytes: must be 1 to 1024"):
        encode_frame(bytes(length))


@given(st.integers(1, 4), st.booleans())
def test_bytes_shorter_than_a_crc_are_no_payload(length: int, zeros: bool) -> None:
    reader = FrameReader()
    body = bytes(length) if zeros else b"\x55" * length
    groups = body.split(b"\0")
    reader.feed(b"".join(bytes([len(group) + 1]) + group for group in groups) + b"\0")
    assert (reader.frames, reader.bad_frames) == (0, 1)


def blind(sample: list[dict[str, int]]) -> list[dict[str, int]]:
    """The sample as a device without sentinel electrodes sends it."""
    return [channel | {"sentinel_code": 0} for channel in sample]


@given(samples())
def test_a_sample_arrives_as_it_was(sample: list[dict[str, int]]) -> None:
    payload = pack_sample(sample, sentinel=True)
    assert unpack_sample(FrameReader().feed(encode_frame(payload))[0], sentinel=True) == sample
    assert len(payload) == 16 + 30 * len(sample)
    payload = pack_sample(sample)
    assert unpack_sample(FrameReader().feed(encode_frame(payload))[0]) == blind(sample)
    assert len(payload) == 16 + 26 * len(sample)


@given(commands())
def test_a_command_arrives_as_it_was(command: list[dict[str, int]]) -> None:
    payload = pack_command(command)
    assert unpack_command(FrameReader().feed(encode_frame(payload))[0], len(command)) == command
    assert len(payload) == 14 + 4 * len(command) + (4 if len(command) > 1 else 0)


@given(samples(), commands(), st.binary(max_size=20))
def test_unknown_trailing_bytes_are_ignored(
    sample: list[dict[str, int]], command: list[dict[str, int]], more: bytes
) -> None:
    assert unpack_sample(pack_sample(sample) + more) == blind(sample)
    assert unpack_sample(pack_sample(sample, sentinel=True) + more, sentinel=True) == sample
    assert unpack_command(pack_command(command) + more, len(command)) == command


@given(samples(), commands(), st.data())
def test_a_payload_cut_short_is_no_sample_and_no_command(
    sample: list[dict[str, int]], command: list[dict[str, int]], data: st.DataObject
) -> None:
    whole = pack_sample(sample)
    with pytest.raises(ValueError, match="not a SAMPLE"):
        unpack_sample(whole[: data.draw(st.integers(0, len(whole) - 1))])
    whole = pack_command(command)
    with pytest.raises(ValueError, match="not a COMMAND"):
        unpack_command(whole[: data.draw(st.integers(0, len(whole) - 1))], len(command))


@pytest.mark.parametrize("channels", [0, 33, 255])
def test_a_sample_of_no_or_too_many_channels_is_none(channels: int) -> None:
    one: dict[str, Any] = dict.fromkeys(unpack_sample(pack_sample([blank_sample()]))[0], 0)
    payload = bytearray(pack_sample([one] * 32))
    payload[1] = channels
    with pytest.raises(ValueError, match="not a SAMPLE"):
        unpack_sample(bytes(payload))


@pytest.mark.parametrize("channels", [0, 33])
def test_packing_refuses_no_or_too_many_channels(channels: int) -> None:
    with pytest.raises(ValueError, match=f"{channels} channels: must be 1 to 32"):
        pack_sample([blank_sample()] * channels)
    with pytest.raises(ValueError, match=f"{channels} channels: must be 1 to 32"):
        pack_command([{}] * channels)


def blank_sample() -> dict[str, int]:
    names = ("index", "device_time_us", "applied_index", "nonce", "status", "current_code", "redundant_code")
    return dict.fromkeys((*names, "voltage_code", "applied_code", "charge_codes"), 0)


def test_one_channel_fits_a_small_microcontroller() -> None:
    assert len(encode_frame(pack_sample([blank_sample()]))) <= 48
    command = dict.fromkeys(("index", "token", "nonce", "lease_ticks", "flags", "code"), 0)
    assert len(encode_frame(pack_command([command]))) <= 24
