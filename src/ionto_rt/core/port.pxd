"""Bytes to and from a file descriptor: one system call to wait and read, one to write."""
from libc.stdint cimport int32_t, int64_t, uint8_t

cdef struct FileDescriptor:
    int fd                      # not owned; written to, and read from where `reading` is none
    int reading                 # a second, blocking description of the same terminal, whose read waits up to 0.1 s; -1

# 0, or -errno where reading must wait in poll. To be closed after the run: an open one keeps a device from seeing that
# its host has gone.
cdef int port_open_reading(FileDescriptor* port) noexcept nogil
cdef void port_close_reading(FileDescriptor* port) noexcept nogil
# The functions of struct Port; context is a FileDescriptor*.
cdef int64_t port_read(void* context, uint8_t* data, size_t capacity, int64_t timeout_us) noexcept nogil
cdef int64_t port_write(void* context, const uint8_t* data, size_t length) noexcept nogil
