"""Frames to and from the device: COBS, CRC-32, little-endian integers. The format is docs/wire-protocol.md."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from ionto_rt.core.types cimport Command, Sample

cdef enum:
    PROTOCOL_VERSION = 1
    MAX_PAYLOAD = 1024
    MAX_FRAME = 1040            # MAX_PAYLOAD, CRC, COBS overhead and delimiter
    SAMPLE_HEADER_BYTES = 16
    SAMPLE_CHANNEL_BYTES = 26
    SENTINEL_CHANNEL_BYTES = 4
    HELLO_FEATURE_BYTES = 12
    COMMAND_HEADER_BYTES = 14
    COMMAND_CHANNEL_BYTES = 4
    COMMAND_RELAYS_BYTES = 4    # behind the channels, where there are several

cdef enum FrameType:
    FRAME_HELLO_REQUEST = 0x01
    FRAME_LIMITS = 0x02
    FRAME_ARM = 0x03
    FRAME_DISARM = 0x04
    FRAME_COMMAND = 0x05
    FRAME_COUNTERS_REQUEST = 0x06
    FRAME_HELLO = 0x81
    FRAME_LIMITS_READ_BACK = 0x82
    FRAME_ARMED = 0x83
    FRAME_DISARMED = 0x84
    FRAME_SAMPLE = 0x85
    FRAME_COUNTERS = 0x86
    FRAME_ERROR = 0xFF

cdef enum HelloFeature:         # bits behind the ranges of a hello
    FEATURE_SENTINEL = 1        # a sentinel electrode is wired, and its reading is in the sample
    FEATURE_CHANNEL_CHARGES = 2  # charges of the last session per channel, from channel 1 on, behind the features

cdef enum WireError:            # codes of an ERROR frame
    WIRE_ERROR_UNDECODABLE = 1  # CRC, COBS or length
    WIRE_ERROR_UNKNOWN_TYPE = 2
    WIRE_ERROR_VERSION = 3
    WIRE_ERROR_STATE = 4        # not allowed in this state
    WIRE_ERROR_TOKEN = 5
    WIRE_ERROR_NONCE = 6
    WIRE_ERROR_STALE = 7        # command not newer than the one in force
    WIRE_ERROR_LEASE = 8        # lease longer than the device allows
    WIRE_ERROR_LIMITS = 9       # pushed limits beyond the device's own
    WIRE_ERROR_PACING = 10      # pacing not offered

# Collects bytes into frames. Zero it to start.
cdef struct Receiver:
    uint32_t length
    int32_t overflow            # 1: the frame being collected is too long, skipped to its delimiter
    uint64_t frames             # decoded
    uint64_t bad_frames         # COBS, CRC or length
    uint8_t data[1040]

cdef uint32_t wire_crc32(const uint8_t* data, size_t length) noexcept nogil
# COBS-encodes payload and its CRC and appends the delimiter; returns the bytes written, 0 if length > MAX_PAYLOAD.
# frame must hold MAX_FRAME bytes.
cdef size_t wire_encode(const uint8_t* payload, size_t length, uint8_t* frame) noexcept nogil
# Takes bytes from data[0:length]; stops after the first complete frame. Returns the bytes consumed; *payload_length is
# the length of the good payload in payload (room for MAX_PAYLOAD + 4 bytes), or 0 if no good frame was completed.
cdef size_t wire_receive(Receiver* receiver, const uint8_t* data, size_t length,
                         uint8_t* payload, size_t* payload_length) noexcept nogil
# Payload builders and readers; channel 0..channels-1. Readers return 1 on success, 0 if the payload is too short.
cdef size_t wire_put_sample(const Sample* samples, uint32_t channels, uint8_t* payload) noexcept nogil
cdef int wire_get_sample(const uint8_t* payload, size_t length, Sample* samples, uint32_t* channels) noexcept nogil
# The sentinel electrode's codes, behind the last channel. Whether they are there is in the hello, not in the frame.
cdef size_t wire_put_sentinel(const Sample* samples, uint32_t channels, uint8_t* payload) noexcept nogil
cdef int wire_get_sentinel(const uint8_t* payload, size_t length, Sample* samples, uint32_t channels) noexcept nogil
cdef size_t wire_put_command(const Command* commands, uint32_t channels, uint8_t* payload) noexcept nogil
cdef int wire_get_command(const uint8_t* payload, size_t length, Command* commands, uint32_t* channels) noexcept nogil

# Integers of the wire, byte by byte: the same on every processor.
cdef inline uint16_t get_u16(const uint8_t* at) noexcept nogil:
    return <uint16_t>(at[0] | (<uint32_t>at[1] << 8))


cdef inline uint32_t get_u32(const uint8_t* at) noexcept nogil:
    return at[0] | (<uint32_t>at[1] << 8) | (<uint32_t>at[2] << 16) | (<uint32_t>at[3] << 24)


cdef inline uint64_t get_u64(const uint8_t* at) noexcept nogil:
    return get_u32(at) | (<uint64_t>get_u32(at + 4) << 32)


cdef inline void put_u16(uint8_t* at, uint16_t value) noexcept nogil:
    at[0] = <uint8_t>(value & 0xFF)
    at[1] = <uint8_t>(value >> 8)


cdef inline void put_u32(uint8_t* at, uint32_t value) noexcept nogil:
    at[0] = <uint8_t>(value & 0xFF)
    at[1] = <uint8_t>((value >> 8) & 0xFF)
    at[2] = <uint8_t>((value >> 16) & 0xFF)
    at[3] = <uint8_t>(value >> 24)


cdef inline void put_u64(uint8_t* at, uint64_t value) noexcept nogil:
    put_u32(at, <uint32_t>value)
    put_u32(at + 4, <uint32_t>(value >> 32))
