/* opens r|w COUNT FILE: opens the file so often, for reading or for writing, and closes it. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int count, char **words)
{
    if (count != 4)
        return 2;
    int flags = *words[1] == 'w' ? O_WRONLY : O_RDONLY;
    for (long left = atol(words[2]); left > 0; left--) {
        int fd = open(words[3], flags);
        if (fd < 0) {
            perror(words[3]);
            return 1;
        }
        close(fd);
    }
    return 0;
}
