"""Bytes to and from a file descriptor: one system call to wait and read, one to write."""
from libc.errno cimport EAGAIN, EINTR, EIO, ETIMEDOUT, errno
from libc.stdint cimport int64_t, uint8_t
from libc.stdio cimport snprintf
from posix.fcntl cimport O_RDONLY, open as c_open
from posix.unistd cimport close as c_close, isatty, read as c_read, write as c_write

cdef extern from "fcntl.h" nogil:
    int O_CLOEXEC, O_NOCTTY

cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* fds, unsigned long count, int timeout_ms)
    short POLLIN, POLLOUT, POLLERR, POLLHUP, POLLNVAL

cdef extern from "termios.h" nogil:
    struct termios:
        unsigned char c_cc[32]
    int VMIN, VTIME, TCSANOW
    int tcgetattr(int fd, termios* wanted)
    int tcsetattr(int fd, int when, const termios* wanted)

cdef enum:
    WRITE_PATIENCE_MS = 20


cdef int port_open_reading(FileDescriptor* port) noexcept nogil:
    cdef termios settings
    cdef char path[40]
    cdef int failed
    port.reading = -1
    if not isatty(port.fd):
        return -errno
    # The descriptor itself must not block: a write to a device that takes no bytes would never return. A description
    # of its own for reading may, and then one read waits as well.
    snprintf(path, sizeof(path), "/proc/self/fd/%d", port.fd)
    port.reading = c_open(path, O_RDONLY | O_NOCTTY | O_CLOEXEC)
    if port.reading < 0:
        return -errno
    if tcgetattr(port.reading, &settings) == 0:
        if settings.c_cc[VMIN] == 0 and settings.c_cc[VTIME] == 1:
            return 0
        settings.c_cc[VMIN] = 0
        settings.c_cc[VTIME] = 1
        if tcsetattr(port.reading, TCSANOW, &settings) == 0:
            return 0
    failed = errno
    port_close_reading(port)
    return -failed


cdef void port_close_reading(FileDescriptor* port) noexcept nogil:
    if port.reading >= 0:
        c_close(port.reading)
    port.reading = -1


cdef int64_t port_read(void* context, uint8_t* data, size_t capacity, int64_t timeout_us) noexcept nogil:
    cdef FileDescriptor* port = <FileDescriptor*>context
    cdef pollfd waiting
    cdef int ready
    cdef int64_t count
    waiting.events = POLLIN
    waiting.revents = 0
    if port.reading >= 0:
        count = c_read(port.reading, data, capacity)
        if count > 0:
            return count
        if count < 0:
            return 0 if errno == EINTR else -errno
        # Nothing within 0.1 s, or nobody there any more.
        waiting.fd = port.reading
        if poll(&waiting, 1, 0) > 0 and waiting.revents & (POLLHUP | POLLERR | POLLNVAL):
            return -EIO
        return 0
    waiting.fd = port.fd
    ready = poll(&waiting, 1, <int>((timeout_us + 999) // 1000))
    if ready < 0:
        return 0 if errno == EINTR else -errno
    if ready == 0:
        return 0
    if waiting.revents & POLLNVAL:
        return -EIO
    count = c_read(port.fd, data, capacity)
    if count < 0:
        return 0 if errno == EINTR or errno == EAGAIN else -errno
    if count == 0:
        return -EIO             # hung up
    return count


cdef int64_t port_write(void* context, const uint8_t* data, size_t length) noexcept nogil:
    """All of data, or -errno; gives up after 20 ms of a full buffer: the lease then does its work."""
    cdef FileDescriptor* port = <FileDescriptor*>context
    cdef pollfd waiting
    cdef size_t done = 0
    cdef int64_t count
    waiting.fd = port.fd
    waiting.events = POLLOUT
    while done < length:
        count = c_write(port.fd, data + done, length - done)
        if count > 0:
            done += <size_t>count
            continue
        if count < 0 and errno == EINTR:
            continue
        if count < 0 and errno != EAGAIN:
            return -errno
        waiting.revents = 0
        if poll(&waiting, 1, WRITE_PATIENCE_MS) <= 0:
            return -ETIMEDOUT
    return <int64_t>done
