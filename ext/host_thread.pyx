"""The calling thread as the host's kernel sees it: what it was given, what it used up.

What is asked for here is attempted, never required: each attempt's outcome is a text for the record.
"""
import os

from libc.stdint cimport uint64_t
from posix.time cimport clock_gettime, timespec

cdef extern from "<time.h>" nogil:
    int CLOCK_THREAD_CPUTIME_ID

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, ...)
    int PR_SET_TIMERSLACK, PR_GET_TIMERSLACK

cdef extern from *:
    """
    #include <alloca.h>
    #include <pthread.h>
    #include <stdint.h>
    #include <sys/resource.h>

    #define STACK_PAGE 4096
    #define STACK_LEFT 65536    /* below what is touched: for the interpreter's own calls, and the guard page */

    static void usage_of_thread(struct rusage *usage) { getrusage(RUSAGE_THREAD, usage); }

    /* Bytes of the calling thread's stack below this call that may be touched. */
    static size_t stack_below(void) {
        pthread_attr_t attributes;
        void *lowest = NULL;
        size_t size = 0;
        uintptr_t here = (uintptr_t)__builtin_frame_address(0);
        if (pthread_getattr_np(pthread_self(), &attributes))
            return 0;
        if (pthread_attr_getstack(&attributes, &lowest, &size))
            lowest = (void *)here;
        pthread_attr_destroy(&attributes);
        return here - (uintptr_t)lowest > STACK_LEFT ? here - (uintptr_t)lowest - STACK_LEFT : 0;
    }

    /* Downwards, as a stack grows. A frame of its own, so that the bytes are given back on return. */
    static __attribute__((noinline)) void touch_stack(size_t bytes) {
        volatile unsigned char *lowest = alloca(bytes);
        size_t at;
        for (at = bytes; at >= STACK_PAGE; at -= STACK_PAGE)
            lowest[at - 1] = 0;
        lowest[0] = 0;
    }
    """
    struct rusage:
        long ru_minflt, ru_majflt, ru_nvcsw, ru_nivcsw
    void usage_of_thread(rusage* usage) nogil
    size_t stack_below() nogil
    void touch_stack(size_t bytes) nogil


cdef void thread_usage(ThreadUsage* usage) noexcept nogil:
    cdef rusage seen
    cdef timespec processor
    usage_of_thread(&seen)
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &processor)
    usage.minor_faults = <uint64_t>seen.ru_minflt
    usage.major_faults = <uint64_t>seen.ru_majflt
    usage.voluntary_switches = <uint64_t>seen.ru_nvcsw
    usage.involuntary_switches = <uint64_t>seen.ru_nivcsw
    usage.processor_ns = <uint64_t>processor.tv_sec * 1000000000 + <uint64_t>processor.tv_nsec


cdef size_t thread_touch_stack(size_t bytes) noexcept nogil:
    cdef size_t below = stack_below()
    if bytes > below:
        bytes = below
    if bytes:
        touch_stack(bytes)
    return bytes


def prepare(priority=40, cpu=None, unsigned long slack_ns=1, size_t stack_bytes=262144) -> dict:
    """Ask for what the loop's thread would like to have, for the calling thread; what came of each, as text.

    Keys: `priority` (SCHED_FIFO, 1 to 99; None: as it is), `affinity` (processor `cpu`; None: any that the process may
    use), `timer_slack` (by how much the kernel may delay a wake-up to save energy) and `stack` (that many bytes below
    this call touched, so that no page faults later; less where the stack has less). What is not granted raises nothing.
    """
    outcome = {}
    # Before the priority: under SCHED_FIFO newer kernels hold the slack at zero and take no other.
    if slack_ns:
        prctl(PR_SET_TIMERSLACK, slack_ns, 0, 0, 0)
    if priority is None:
        outcome["priority"] = "ordinary (as asked)"
    else:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
            outcome["priority"] = f"SCHED_FIFO {priority}"
        except OSError as error:
            outcome["priority"] = f"ordinary ({error.strerror})"
    if cpu is None:
        outcome["affinity"] = "any"
    else:
        try:
            os.sched_setaffinity(0, {cpu})
            outcome["affinity"] = f"cpu {cpu}"
        except (OSError, ValueError, OverflowError) as error:
            outcome["affinity"] = f"not pinned ({getattr(error, 'strerror', None) or error})"
    outcome["timer_slack"] = f"{prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0)} ns"
    outcome["stack"] = f"{thread_touch_stack(stack_bytes) // 1024} KiB touched"
    return outcome


def usage() -> dict:
    """What the calling thread has used since it began: faults and switches counted, `processor_s` in s."""
    cdef ThreadUsage seen
    thread_usage(&seen)
    return {
        "minor_faults": seen.minor_faults, "major_faults": seen.major_faults,
        "voluntary_switches": seen.voluntary_switches, "involuntary_switches": seen.involuntary_switches,
        "processor_s": seen.processor_ns * 1e-9,
    }
