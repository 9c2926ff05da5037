/*
 * opens FILE WHAT...: calls each WHAT in turn, again and again, and prints the median of what one call takes, in
 * nanoseconds. WHAT: r, w: opens the file for reading, for writing, and closes it; s: stat; c: chmod.
 *
 * A batch of calls is measured at a time: what the kernel does meanwhile for others changes few of them.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { CALLS = 20, BATCHES = 1001 };

static int call(char what, const char *file)
{
    struct stat status;
    switch (what) {
    case 's':
        return stat(file, &status);
    case 'c':
        return chmod(file, 0644);
    }
    int fd = open(file, what == 'w' ? O_WRONLY : O_RDONLY);
    return fd < 0 ? -1 : close(fd);
}

static long now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC_RAW, &time);
    return time.tv_sec * 1000000000L + time.tv_nsec;
}

static int order(const void *one, const void *other)
{
    long a = *(const long *)one, b = *(const long *)other;
    return (a > b) - (a < b);
}

int main(int count, char **words)
{
    static long taken[BATCHES];
    if (count < 3)
        return 2;
    for (int what = 2; what < count; what++) {
        for (int batch = 0; batch < BATCHES; batch++) {
            long before = now();
            for (int left = CALLS; left > 0; left--) {
                if (call(*words[what], words[1])) {
                    perror(words[1]);
                    return 1;
                }
            }
            taken[batch] = now() - before;
        }
        qsort(taken, BATCHES, sizeof(*taken), order);
        printf("call %s: %ld\n", words[what], taken[BATCHES / 2] / CALLS);
    }
    return 0;
}
