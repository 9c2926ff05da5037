/* opens r|w|s|c COUNT FILE: so often opens the file, for reading or for writing, and closes it; or calls stat or chmod. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

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

int main(int count, char **words)
{
    if (count != 4)
        return 2;
    for (long left = atol(words[2]); left > 0; left--) {
        if (call(*words[1], words[3])) {
            perror(words[3]);
            return 1;
        }
    }
    return 0;
}
