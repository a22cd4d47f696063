"""Numbers that the tick, the wire and the record use, under the names that `core/types.pxd` gives them.

Members drop the prefix of the C name: `SEGMENT_DELIVER` is `SegmentKind.DELIVER`. A test reads types.pxd and holds
both to the same numbers.
"""

from enum import IntEnum, IntFlag

MAX_CHANNELS = 32
MAX_SEGMENTS = 4096
HISTORY_TICKS = 16
PORT_VERSION = 1
DAQ_VERSION = 1
ALL_CHANNELS = 255
LOOP_SEQUENCE = 0x80000000


class FrontEnd(IntEnum):
    CURRENT_SOURCE = 0
    VOLTAGE_SOURCE = 1


class Pacing(IntFlag):
    DEVICE = 1
    HOST = 2
    LOCK_STEP = 4


class DeviceStatus(IntFlag):
    RELAY_CLOSED = 1
    COMPLIANCE = 2
    LEASE_EXPIRED = 4
    OVER_CURRENT = 8
    CHARGE_CAP = 16
    TIME_CAP = 32
    CLAMPED = 64
    LATE = 128
    PATIENT_STOP = 256
    LEAKAGE = 512
    SUPPLY_WARNING = 1024
    SUPPLY_LOW = 2048
    OVER_TEMPERATURE = 4096
    SELF_TEST_FAILED = 8192
    SPEAKER_FAULT = 16384


class OperatorCommand(IntEnum):
    NONE = 0
    PAUSE = 1
    RESUME = 2
    TRIM = 3
    STOP = 4


class StopFlag(IntEnum):
    NONE = 0
    RAMP_DOWN = 1
    NOW = 2


class OnTrip(IntEnum):
    """What one channel's trip means for the others of its device: they end, hold, or go on."""

    STOP = 0
    PAUSE = 1
    CONTINUE = 2


class SegmentKind(IntEnum):
    SELF_TEST = 0
    CONTACT_CHECK = 1
    DELIVER = 2
    RAMP_DOWN = 3
    REST = 4


class Phase(IntEnum):
    SELF_TEST = 0
    CONTACT_CHECK = 1
    RAMP_UP = 2
    TREATMENT = 3
    PAUSE = 4
    RAMP_DOWN = 5
    COMPLETE = 6
    ABORTED = 7
    FAULTED = 8


class EndReason(IntEnum):
    NONE = 0
    COMPLETE = 1
    OPERATOR = 2
    SELF_TEST = 3
    CONTACT_OPEN = 4
    CONTACT_SHORT = 5
    TRIP = 6
    CONTACT_OUTSIDE = 7
    CONTACT_UNCLEAR = 8


class ProbeVerdict(IntEnum):
    RUNNING = 0
    GOOD = 1
    OPEN = 2
    SHORT = 3
    OUTSIDE = 4
    UNCLEAR = 5


class Law(IntEnum):
    PID = 0
    PREDICTIVE = 1


class Contact(IntEnum):
    UNKNOWN = 0
    GOOD = 1
    LOST = 2


class AreaAlarm(IntEnum):
    """Contact area against its baseline."""

    STEADY = 0
    SMALLER = 1
    LARGER = 2


class Action(IntEnum):
    """Safe states, in rising order of urgency: derate is S3, pause S2, ramp down S1, off S0."""

    NONE = 0
    DERATE = 1
    PAUSE = 2
    RAMP_DOWN = 3
    OFF = 4


class Trip(IntEnum):
    """Causes of a trip; up to 53 the numbers are those of the hazard matrix."""

    NONE = 0
    OVER_CURRENT = 1
    OVER_CURRENT_MEAN = 2
    UNDER_CURRENT = 3
    OPEN_LEAD = 5
    INTERMITTENT_LEAD = 7
    SHORT = 8
    CONTACT_AREA = 9
    BREAKDOWN = 11
    RESISTANCE_RISING = 12
    DENSITY = 13
    CHARGE_CAP = 15
    SESSION_TIME = 16
    POLARITY = 17
    OUTPUT_MISMATCH = 20
    READING_STUCK = 22
    READINGS_DISAGREE = 23
    LOST_SAMPLES = 24
    STALE_DATA = 25
    DEADLINES = 26
    HOST_SUSPENDED = 28
    LEASE_LAPSED = 29
    HEARTBEAT = 30
    WATCHDOG = 31
    NOT_FINITE = 32
    HUNTING = 34
    SUPPLY_LOW = 39
    LEAKAGE = 40
    INTERFERENCE = 41
    CROSS_LEAKAGE = 42
    ELECTRODE_SPENT = 43
    TEMPERATURE = 44
    PATIENT_STOP = 45
    PAD_CHANGED = 48
    DEVICE_SELF_TEST = 49
    REVERSAL = 52
    DEVICE_CLOCK = 53
    LIMITS_CORRUPT = 54
    DEVICE_CAP = 55
    OPERATOR_STOP = 56
    CHARGE_MISMATCH = 57


class SampleFault(IntEnum):
    GOOD = 0
    OUT_OF_RANGE = 1
    NOT_FINITE = 2
    REPEATED = 3


class Event(IntFlag):
    PHASE = 1
    TRIP = 2
    SEGMENT = 4
    OPERATOR = 8
    LIMITED = 16
    CONTACT = 32
    BAD_SAMPLE = 64
    GAP = 128
    PAUSE = 256
    STATUS = 512
    END = 1024
    ADVICE = 2048


class Advice(IntFlag):
    """What a person should see to, while the session goes on."""

    WET_PADS = 1
    MAINS = 2
    AREA = 4


class CommandFlag(IntFlag):
    CLOSE_RELAY = 1
