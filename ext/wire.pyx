"""Frames to and from the device. The format, field by field, is docs/wire-protocol.md."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcpy, memmove, memset

from ionto_rt.core.types cimport COMMAND_CLOSE_RELAY, MAX_CHANNELS, Command, Sample

cdef enum:
    CRC_POLYNOMIAL = 0xEDB88320                 # 0x04C11DB7 with its bits reversed
cdef uint32_t crc_table[8][256]


cdef void fill_crc_table() noexcept nogil:
    cdef uint32_t value, byte
    cdef int _bit, slice_
    for byte in range(256):
        value = byte
        for _bit in range(8):
            value = (value >> 1) ^ (CRC_POLYNOMIAL if value & 1 else 0)
        crc_table[0][byte] = value
    for byte in range(256):
        for slice_ in range(1, 8):
            value = crc_table[slice_ - 1][byte]
            crc_table[slice_][byte] = (value >> 8) ^ crc_table[0][value & 0xFF]


fill_crc_table()


cdef uint32_t wire_crc32(const uint8_t* data, size_t length) noexcept nogil:
    cdef uint32_t crc = ~<uint32_t>0
    cdef uint32_t low, high
    cdef size_t at = 0
    while length - at >= 8:
        low = crc ^ get_u32(data + at)
        high = get_u32(data + at + 4)
        crc = (
            crc_table[7][low & 0xFF] ^ crc_table[6][(low >> 8) & 0xFF]
            ^ crc_table[5][(low >> 16) & 0xFF] ^ crc_table[4][low >> 24]
            ^ crc_table[3][high & 0xFF] ^ crc_table[2][(high >> 8) & 0xFF]
            ^ crc_table[1][(high >> 16) & 0xFF] ^ crc_table[0][high >> 24]
        )
        at += 8
    while at < length:
        crc = (crc >> 8) ^ crc_table[0][(crc ^ data[at]) & 0xFF]
        at += 1
    return ~crc


cdef size_t wire_encode(const uint8_t* payload, size_t length, uint8_t* frame) noexcept nogil:
    """COBS puts each code where the zero was that it stands for, so the body is copied whole and the codes follow.

    The code of an open block is written anew with each of its bytes: a branch on the byte could not be guessed.
    """
    cdef size_t at = 1, code_at = 0, end = length + 5, stop
    if length == 0 or length > MAX_PAYLOAD:
        return 0
    memcpy(frame + 1, payload, length)
    put_u32(frame + 1 + length, wire_crc32(payload, length))
    frame[0] = 1
    while at < end:
        stop = code_at + 0xFF if code_at + 0xFF < end else end
        while at < stop:
            code_at = code_at if frame[at] else at
            frame[code_at] = <uint8_t>(at + 1 - code_at)
            at += 1
        if at - code_at == 0xFF and at < end:
            # A full block stands for no zero: its successor's code is one byte more.
            memmove(frame + at + 1, frame + at, end - at)
            end += 1
            frame[at] = 1
            code_at = at
            at += 1
    frame[end] = 0
    return end + 1


cdef size_t decode(const uint8_t* frame, size_t length, uint8_t* payload) noexcept nogil:
    """Length of the payload, or 0: not COBS, too short, too long, or a CRC that does not fit. frame: MAX_FRAME bytes,
    of which `length` count.
    """
    cdef size_t at = 0, out = 0, count
    cdef uint8_t code
    while at < length:
        code = frame[at]
        at += 1
        count = <size_t>code - 1
        if count > length - at or count > MAX_PAYLOAD + 4 - out:
            return 0
        if count <= 16 and at <= MAX_PAYLOAD + 4 - 16:
            # What is copied beyond the group is overwritten by what follows.
            memcpy(payload + out, frame + at, 16)
        else:
            memcpy(payload + out, frame + at, count)
        out += count
        at += count
        if code != 0xFF and at < length:
            if out == MAX_PAYLOAD + 4:
                return 0
            payload[out] = 0
            out += 1
    if out < 5:
        return 0
    if wire_crc32(payload, out - 4) != get_u32(payload + out - 4):
        return 0
    return out - 4


cdef size_t wire_receive(Receiver* receiver, const uint8_t* data, size_t length,
                         uint8_t* payload, size_t* payload_length) noexcept nogil:
    cdef size_t at = 0, count, room
    cdef const uint8_t* delimiter
    payload_length[0] = 0
    while at < length:
        delimiter = <const uint8_t*>memchr(data + at, 0, length - at)
        count = length - at if delimiter == NULL else <size_t>(delimiter - (data + at))
        room = MAX_FRAME - receiver.length
        if count > room:
            receiver.overflow = 1
        memcpy(receiver.data + receiver.length, data + at, count if count < room else room)
        receiver.length += <uint32_t>(count if count < room else room)
        at += count
        if delimiter == NULL:
            return at
        at += 1
        if receiver.length == 0:
            continue
        if not receiver.overflow:
            payload_length[0] = decode(receiver.data, receiver.length, payload)
        receiver.length = 0
        receiver.overflow = 0
        if payload_length[0]:
            receiver.frames += 1
        else:
            receiver.bad_frames += 1
        return at
    return at


cdef size_t wire_put_sample(const Sample* samples, uint32_t channels, uint8_t* payload) noexcept nogil:
    cdef uint32_t channel
    cdef uint8_t* at = payload + SAMPLE_HEADER_BYTES
    payload[0] = FRAME_SAMPLE
    payload[1] = <uint8_t>channels
    put_u32(payload + 2, samples[0].index)
    put_u32(payload + 6, samples[0].device_time_us)
    put_u32(payload + 10, samples[0].applied_index)
    put_u16(payload + 14, samples[0].nonce)
    for channel in range(channels):
        put_u32(at, <uint32_t>samples[channel].current_code)
        put_u32(at + 4, <uint32_t>samples[channel].redundant_code)
        put_u32(at + 8, <uint32_t>samples[channel].voltage_code)
        put_u32(at + 12, <uint32_t>samples[channel].applied_code)
        put_u16(at + 16, samples[channel].status)
        put_u64(at + 18, <uint64_t>samples[channel].charge_codes)
        at += SAMPLE_CHANNEL_BYTES
    return SAMPLE_HEADER_BYTES + SAMPLE_CHANNEL_BYTES * channels


cdef int wire_get_sample(const uint8_t* payload, size_t length, Sample* samples, uint32_t* channels) noexcept nogil:
    cdef uint32_t channel, count
    cdef const uint8_t* at = payload + SAMPLE_HEADER_BYTES
    if length < SAMPLE_HEADER_BYTES or payload[0] != FRAME_SAMPLE:
        return 0
    count = payload[1]
    if count == 0 or count > MAX_CHANNELS or length < SAMPLE_HEADER_BYTES + SAMPLE_CHANNEL_BYTES * count:
        return 0
    for channel in range(count):
        samples[channel].index = get_u32(payload + 2)
        samples[channel].device_time_us = get_u32(payload + 6)
        samples[channel].applied_index = get_u32(payload + 10)
        samples[channel].nonce = get_u16(payload + 14)
        samples[channel].current_code = <int32_t>get_u32(at)
        samples[channel].redundant_code = <int32_t>get_u32(at + 4)
        samples[channel].voltage_code = <int32_t>get_u32(at + 8)
        samples[channel].applied_code = <int32_t>get_u32(at + 12)
        samples[channel].status = get_u16(at + 16)
        samples[channel].charge_codes = <int64_t>get_u64(at + 18)
        samples[channel].sentinel_code = 0
        at += SAMPLE_CHANNEL_BYTES
    channels[0] = count
    return 1


cdef size_t wire_put_sentinel(const Sample* samples, uint32_t channels, uint8_t* payload) noexcept nogil:
    cdef uint32_t channel
    cdef size_t at = SAMPLE_HEADER_BYTES + SAMPLE_CHANNEL_BYTES * <size_t>channels
    for channel in range(channels):
        put_u32(payload + at, <uint32_t>samples[channel].sentinel_code)
        at += SENTINEL_CHANNEL_BYTES
    return at


cdef int wire_get_sentinel(const uint8_t* payload, size_t length, Sample* samples, uint32_t channels) noexcept nogil:
    cdef uint32_t channel
    cdef size_t at = SAMPLE_HEADER_BYTES + SAMPLE_CHANNEL_BYTES * <size_t>channels
    if length < at + SENTINEL_CHANNEL_BYTES * <size_t>channels:
        return 0
    for channel in range(channels):
        samples[channel].sentinel_code = <int32_t>get_u32(payload + at)
        at += SENTINEL_CHANNEL_BYTES
    return 1


cdef size_t wire_put_command(const Command* commands, uint32_t channels, uint8_t* payload) noexcept nogil:
    cdef uint32_t channel, relays = 0
    cdef size_t length = COMMAND_HEADER_BYTES + COMMAND_CHANNEL_BYTES * <size_t>channels
    for channel in range(channels):
        if commands[channel].flags & COMMAND_CLOSE_RELAY:
            relays |= <uint32_t>1 << channel
    payload[0] = FRAME_COMMAND
    payload[1] = COMMAND_CLOSE_RELAY if relays else 0
    put_u32(payload + 2, commands[0].index)
    put_u32(payload + 6, commands[0].token)
    put_u16(payload + 10, commands[0].nonce)
    put_u16(payload + 12, commands[0].lease_ticks)
    for channel in range(channels):
        put_u32(payload + COMMAND_HEADER_BYTES + COMMAND_CHANNEL_BYTES * channel, <uint32_t>commands[channel].code)
    if channels > 1:
        put_u32(payload + length, relays)
        length += COMMAND_RELAYS_BYTES
    return length


cdef int wire_get_command(const uint8_t* payload, size_t length, Command* commands, uint32_t* channels) noexcept nogil:
    cdef uint32_t channel, relays, count = channels[0]
    cdef size_t end = COMMAND_HEADER_BYTES + COMMAND_CHANNEL_BYTES * <size_t>count
    if count == 0 or count > MAX_CHANNELS or length < end + (COMMAND_RELAYS_BYTES if count > 1 else 0):
        return 0
    if payload[0] != FRAME_COMMAND:
        return 0
    relays = payload[1] & COMMAND_CLOSE_RELAY
    if count > 1 and relays:
        relays = get_u32(payload + end)
    for channel in range(count):
        commands[channel].flags = COMMAND_CLOSE_RELAY if relays >> channel & 1 else 0
        commands[channel].index = get_u32(payload + 2)
        commands[channel].token = get_u32(payload + 6)
        commands[channel].nonce = get_u16(payload + 10)
        commands[channel].lease_ticks = get_u16(payload + 12)
        commands[channel].code = <int32_t>get_u32(payload + COMMAND_HEADER_BYTES + COMMAND_CHANNEL_BYTES * channel)
    return 1


def crc32(bytes data) -> int:
    """CRC-32/ISO-HDLC of data; 0xCBF43926 for b"123456789"."""
    return wire_crc32(<const uint8_t*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


def encode_frame(bytes payload) -> bytes:
    """The frame of a payload of 1 to 1024 bytes, delimiter included. ValueError outside that."""
    cdef uint8_t frame[MAX_FRAME]
    cdef size_t length = wire_encode(<const uint8_t*>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), frame)
    if length == 0:
        raise ValueError(f"payload of {len(payload)} bytes: must be 1 to {MAX_PAYLOAD}")
    return PyBytes_FromStringAndSize(<char*>frame, length)


cdef class FrameReader:
    """Bytes in, good payloads out; resynchronises at each delimiter."""
    cdef Receiver receiver

    def __cinit__(self):
        memset(&self.receiver, 0, sizeof(self.receiver))

    def feed(self, bytes data) -> list:
        """Payloads completed by data (list of bytes), in order; bad frames are counted and skipped."""
        cdef uint8_t payload[MAX_PAYLOAD + 4]
        cdef size_t length, used, at = 0, total = PyBytes_GET_SIZE(data)
        cdef const uint8_t* start = <const uint8_t*>PyBytes_AS_STRING(data)
        payloads = []
        while at < total:
            used = wire_receive(&self.receiver, start + at, total - at, payload, &length)
            at += used
            if length:
                payloads.append(PyBytes_FromStringAndSize(<char*>payload, length))
        return payloads

    @property
    def frames(self) -> int:
        """Good frames so far."""
        return self.receiver.frames

    @property
    def bad_frames(self) -> int:
        """Frames refused so far: COBS, CRC or length."""
        return self.receiver.bad_frames


def unpack_sample(bytes payload, bint sentinel=False) -> list:
    """Channels of a SAMPLE payload, as dicts of the fields of struct Sample. ValueError if it is none.

    sentinel: as the device's hello says; without, sentinel_code is 0 whatever follows the channels.
    """
    cdef Sample samples[MAX_CHANNELS]
    cdef uint32_t channels = 0
    cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(payload)
    cdef size_t length = PyBytes_GET_SIZE(payload)
    if not wire_get_sample(data, length, samples, &channels):
        raise ValueError("not a SAMPLE payload")
    if sentinel and not wire_get_sentinel(data, length, samples, channels):
        raise ValueError("not a SAMPLE payload: the sentinel's reading is missing")
    return [samples[channel] for channel in range(channels)]


def pack_sample(list channels, bint sentinel=False) -> bytes:
    """A SAMPLE payload from dicts with every field of struct Sample, one for each of 1 to 32 channels.

    sentinel: with the sentinel electrodes' readings behind the channels (0 where a dict has none).
    """
    cdef Sample samples[MAX_CHANNELS]
    cdef uint8_t payload[MAX_PAYLOAD]
    cdef Py_ssize_t channel
    if not 1 <= len(channels) <= MAX_CHANNELS:
        raise ValueError(f"{len(channels)} channels: must be 1 to {MAX_CHANNELS}")
    for channel in range(len(channels)):
        samples[channel] = {"sentinel_code": 0, **channels[channel]}
    cdef size_t length = wire_put_sample(samples, <uint32_t>len(channels), payload)
    if sentinel:
        length = wire_put_sentinel(samples, <uint32_t>len(channels), payload)
    return PyBytes_FromStringAndSize(<char*>payload, length)


def unpack_command(bytes payload, int channels=1) -> list:
    """Channels of a COMMAND payload, as dicts of the fields of struct Command. ValueError if it is none."""
    cdef Command commands[MAX_CHANNELS]
    cdef uint32_t count = channels
    if not wire_get_command(<const uint8_t*>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), commands, &count):
        raise ValueError("not a COMMAND payload")
    return [commands[channel] for channel in range(count)]


def pack_command(list channels) -> bytes:
    """A COMMAND payload from dicts with every field of struct Command, one for each of 1 to 32 channels."""
    cdef Command commands[MAX_CHANNELS]
    cdef uint8_t payload[MAX_PAYLOAD]
    cdef Py_ssize_t channel
    if not 1 <= len(channels) <= MAX_CHANNELS:
        raise ValueError(f"{len(channels)} channels: must be 1 to {MAX_CHANNELS}")
    for channel in range(len(channels)):
        commands[channel] = channels[channel]
    return PyBytes_FromStringAndSize(<char*>payload, wire_put_command(commands, <uint32_t>len(channels), payload))
