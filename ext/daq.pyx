"""Capsules of struct Daq, for a device whose functions somebody else has compiled."""
from cpython.pycapsule cimport PyCapsule_GetContext, PyCapsule_New, PyCapsule_SetContext
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uintptr_t

from ionto_rt.core.types cimport (
    DAQ_VERSION, MAX_CHANNELS, PACING_DEVICE, PACING_HOST, PACING_LOCK_STEP, Daq,
)

cdef const char* CAPSULE_NAME = "ionto_rt.core.types.Daq"


cdef void release(object capsule) noexcept:
    Py_DECREF(<object>PyCapsule_GetContext(capsule))


def daq_capsule(address, keep):
    """The struct ionto_daq (include/ionto_rt/daq.h) at `address` as the port of a `Loop`.

    `keep` is what the struct and its functions live in; the capsule keeps it alive. ValueError says what is wrong with
    the struct. That it is one cannot be seen: another address than that of an ionto_daq crashes the process.
    """
    cdef Daq* daq = <Daq*><uintptr_t>(address or 0)
    if daq == NULL:
        raise ValueError("the device's struct ionto_daq is at address 0: give that of a filled one")
    if daq.version != DAQ_VERSION:
        raise ValueError(
            f"the device's struct ionto_daq has version {daq.version}: set it to IONTO_DAQ_VERSION, here {DAQ_VERSION}"
        )
    if daq.size < sizeof(Daq):
        raise ValueError(
            f"the device's struct ionto_daq has size {daq.size}: set it to sizeof(ionto_daq), {sizeof(Daq)}"
        )
    if daq.receive == NULL or daq.send == NULL:
        name = "receive" if daq.receive == NULL else "send"
        raise ValueError(f"the device's struct ionto_daq has no {name}: give it the function")
    if not 1 <= daq.channels <= MAX_CHANNELS:
        raise ValueError(f"the device's struct ionto_daq has {daq.channels} channels: must be 1 to {MAX_CHANNELS}")
    if daq.pacing not in (PACING_DEVICE, PACING_HOST, PACING_LOCK_STEP):
        raise ValueError(f"the device's struct ionto_daq has pacing {daq.pacing}: must be one of IONTO_PACING_*")
    capsule = PyCapsule_New(daq, CAPSULE_NAME, release)
    PyCapsule_SetContext(capsule, <void*>keep)
    Py_INCREF(keep)
    return capsule
