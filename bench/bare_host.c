/* The floor of the loop: a host that reads a sample frame and writes the command that renews the lease at zero output.
 *
 *     bare_host FD CHANNELS TOKEN LEASE_TICKS PRIORITY CPU SAMPLES
 *
 * FD is the device's port, inherited, its limits pushed and armed already. One blocking read and one write for each
 * answer, and nothing in between but what a command must carry: the sample's index and nonce, and the CRC. PRIORITY 0
 * and CPU -1 ask for nothing. At the end one line of JSON: samples answered, reads, and the processor time of all that.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static uint32_t table[256];

static uint32_t crc32(const uint8_t *data, size_t length) {
    uint32_t crc = ~0u;
    for (size_t at = 0; at < length; at++)
        crc = crc >> 8 ^ table[(crc ^ data[at]) & 0xFF];
    return ~crc;
}

static size_t encode(const uint8_t *payload, size_t length, uint8_t *frame) {
    size_t code_at = 0, out = 1;
    for (size_t at = 0; at < length; at++) {
        if (payload[at])
            frame[out++] = payload[at];
        if (!payload[at] || out - code_at == 0xFF) {
            frame[code_at] = (uint8_t)(out - code_at);
            code_at = out++;
        }
    }
    frame[code_at] = (uint8_t)(out - code_at);
    frame[out++] = 0;
    return out;
}

/* The first `wanted` bytes of a frame's payload; 0 if it has fewer. */
static int begin(const uint8_t *frame, size_t length, uint8_t *payload, size_t wanted) {
    size_t at = 0, out = 0;
    while (at < length && out < wanted) {
        uint8_t code = frame[at++];
        for (uint8_t left = code - 1; left && at < length && out < wanted; left--)
            payload[out++] = frame[at++];
        if (code != 0xFF && out < wanted)
            payload[out++] = 0;
    }
    return out == wanted;
}

static void put32(uint8_t *at, uint32_t value) { memcpy(at, &value, 4); }

int main(int argc, char **argv) {
    static uint8_t bytes[16384];
    uint8_t payload[256] = {5}, frame[300], head[16];
    size_t held = 0;
    long answered = 0, reads = 0, samples;
    int fd, channels, reading;
    uint16_t lease;
    struct termios settings;
    struct timespec used;
    char path[40];
    if (argc != 8)
        return 2;
    fd = atoi(argv[1]);
    channels = atoi(argv[2]);
    samples = atol(argv[7]);
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t value = byte;
        for (int bit = 0; bit < 8; bit++)
            value = value >> 1 ^ (value & 1 ? 0xEDB88320u : 0);
        table[byte] = value;
    }
    put32(payload + 6, (uint32_t)strtoul(argv[3], NULL, 10));
    lease = (uint16_t)atoi(argv[4]);
    memcpy(payload + 12, &lease, 2);
    if (atoi(argv[5]) > 0) {
        struct sched_param wanted = {.sched_priority = atoi(argv[5])};
        if (sched_setscheduler(0, SCHED_FIFO, &wanted) != 0)
            return 3;
    }
    if (atoi(argv[6]) >= 0) {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(atoi(argv[6]), &one);
        if (sched_setaffinity(0, sizeof one, &one) != 0)
            return 3;
    }
    prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
    mlockall(MCL_CURRENT);
    /* A description of its own that blocks, as the loop has one. */
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    reading = open(path, O_RDONLY | O_NOCTTY);
    if (reading < 0 || tcgetattr(reading, &settings) != 0)
        return 3;
    settings.c_cc[VMIN] = 1;
    settings.c_cc[VTIME] = 0;
    if (tcsetattr(reading, TCSANOW, &settings) != 0)
        return 3;
    while (answered < samples) {
        ssize_t count = read(reading, bytes + held, sizeof bytes - held);
        size_t from = 0;
        int newest = 0;
        if (count <= 0)
            return 4;
        reads++;
        held += (size_t)count;
        for (uint8_t *end; (end = memchr(bytes + from, 0, held - from)) != NULL; from = (size_t)(end - bytes) + 1) {
            if (begin(bytes + from, (size_t)(end - bytes) - from, head, sizeof head) && head[0] == 0x85) {
                answered++;
                newest = 1;
            }
        }
        memmove(bytes, bytes + from, held - from);
        held -= from;
        if (newest) {
            size_t length = 14 + 4 * (size_t)channels + (channels > 1 ? 4 : 0);
            memcpy(payload + 2, head + 2, 4);
            memcpy(payload + 10, head + 14, 2);
            put32(payload + length, crc32(payload, length));
            length = encode(payload, length + 4, frame);
            if (write(fd, frame, length) != (ssize_t)length)
                return 4;
        }
    }
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    printf("{\"answered\": %ld, \"reads\": %ld, \"processor_s\": %.9f}\n", answered, reads,
           (double)used.tv_sec + 1e-9 * (double)used.tv_nsec);
    return 0;
}
