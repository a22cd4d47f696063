"""The four stops (docs/design.md), which a test build can take away one by one; tests/test_stops.py.

That build alone defines IONTO_RT_TEST_STOPS (setup.py); its environment variable IONTO_RT_STOPS_OFF is the sum of what
is taken away. In every other build STOP_IN_FORCE is 1 when it is compiled, and nothing is left of it.
"""

cdef enum:
    STOP_DEVICE = 1             # leases and caps
    STOP_GUARD = 2              # what is in none of the others
    STOP_HEARTBEAT = 4          # of the orchestrator
    STOP_PLAUSIBILITY = 8       # measured current and charge against what was commanded

cdef extern from *:
    """
    #ifdef IONTO_RT_TEST_STOPS
    #include <stdlib.h>
    static int stops_taken_away(void) {
        static int known = 0, mask = 0;
        if (!known) {
            const char *given = getenv("IONTO_RT_STOPS_OFF");
            mask = given ? atoi(given) : 0;
            known = 1;
        }
        return mask;
    }
    #define STOP_IN_FORCE(stop) (!(stops_taken_away() & (stop)))
    #else
    #define STOP_IN_FORCE(stop) ((void) (stop), 1)
    #endif
    """
    bint STOP_IN_FORCE(int stop) noexcept nogil
