/* The floor of lock-step: two bare processes that pass 48 bytes one way and 24 back over a pseudo-terminal.
 *
 *     ping_pong CPU
 *
 * CPU is the processor both stay on, -1 for none. Each line "N" on standard input asks for N exchanges; the answer is
 * one line, the nanoseconds that they took.
 */
#include <pty.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { SAMPLE_BYTES = 48, COMMAND_BYTES = 24 };

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* 1, or 0 when the other end is gone. */
static int take(int fd, size_t length) {
    char data[SAMPLE_BYTES];
    while (length) {
        ssize_t count = read(fd, data, length);
        if (count <= 0)
            return 0;
        length -= (size_t)count;
    }
    return 1;
}

int main(int argc, char **argv) {
    static const char frame[SAMPLE_BYTES] = {0};
    int device_fd, host_fd, cpu = argc > 1 ? atoi(argv[1]) : -1;
    struct termios raw;
    char line[32];
    pid_t device;
    if (cpu >= 0) {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        if (sched_setaffinity(0, sizeof one, &one) != 0)
            return 2;
    }
    if (openpty(&device_fd, &host_fd, NULL, NULL, NULL) != 0 || tcgetattr(host_fd, &raw) != 0)
        return 2;
    cfmakeraw(&raw);
    if (tcsetattr(host_fd, TCSANOW, &raw) != 0)
        return 2;
    device = fork();
    if (device < 0)
        return 2;
    if (device == 0) {
        close(host_fd);
        while (take(device_fd, COMMAND_BYTES) && write(device_fd, frame, SAMPLE_BYTES) == SAMPLE_BYTES) { }
        _exit(0);
    }
    close(device_fd);
    while (fgets(line, sizeof line, stdin)) {
        int64_t began = now_ns();
        for (long left = atol(line); left > 0; left--)
            if (write(host_fd, frame, COMMAND_BYTES) != COMMAND_BYTES || !take(host_fd, SAMPLE_BYTES))
                return 1;
        printf("%lld\n", (long long)(now_ns() - began));
        fflush(stdout);
    }
    close(host_fd);
    waitpid(device, NULL, 0);
    return 0;
}
