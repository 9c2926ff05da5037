/* What a scan of trees cannot be faster than: limits walk|read THREADS DIR...
 *
 * walk: every directory read and statx called for every name. read: that, then every distinct regular file read
 * once, in the order of the inodes. Prints the names, the distinct files and their bytes. Exit codes: 1 failed, 2 usage. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct directory {
    struct directory *next;
    char path[];
};
struct file {
    unsigned long long inode, size;
    char *path;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t more = PTHREAD_COND_INITIALIZER;
static struct directory *waiting;
static long unfinished; /* directories waiting or being read */
static struct file *files;
static size_t count, room;
static atomic_size_t names, next;
static atomic_ullong bytes;
static int keep;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void *allocated(void *memory)
{
    if (!memory)
        fail("limits");
    return memory;
}

static void push(const char *parent, const char *name)
{
    size_t size = strlen(parent) + strlen(name) + 2;
    struct directory *directory = allocated(malloc(sizeof *directory + size));
    snprintf(directory->path, size, *name ? "%s/%s" : "%s%s", parent, name);
    pthread_mutex_lock(&lock);
    directory->next = waiting;
    waiting = directory;
    unfinished++;
    pthread_cond_signal(&more);
    pthread_mutex_unlock(&lock);
}

static void remember(const char *parent, const char *name, const struct statx *status)
{
    char *path;
    if (asprintf(&path, "%s/%s", parent, name) < 0)
        fail(name);
    pthread_mutex_lock(&lock);
    if (count == room)
        files = allocated(realloc(files, (room = room ? 2 * room : 4096) * sizeof *files));
    files[count++] = (struct file){status->stx_ino, status->stx_size, path};
    pthread_mutex_unlock(&lock);
}

static void read_directory(const char *path)
{
    DIR *stream = opendir(path);
    if (!stream)
        fail(path);
    for (struct dirent *entry; (entry = readdir(stream));) {
        struct statx status;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        if (statx(dirfd(stream), entry->d_name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_BASIC_STATS, &status))
            fail(entry->d_name);
        names++;
        if (S_ISDIR(status.stx_mode))
            push(path, entry->d_name);
        else if (keep && S_ISREG(status.stx_mode) && status.stx_size)
            remember(path, entry->d_name, &status);
    }
    closedir(stream);
}

static void *walk(void *unused)
{
    pthread_mutex_lock(&lock);
    while (unfinished) {
        struct directory *directory = waiting;
        if (!directory) {
            pthread_cond_wait(&more, &lock);
            continue;
        }
        waiting = directory->next;
        pthread_mutex_unlock(&lock);
        read_directory(directory->path);
        free(directory);
        pthread_mutex_lock(&lock);
        if (!--unfinished)
            pthread_cond_broadcast(&more);
    }
    pthread_mutex_unlock(&lock);
    return unused;
}

static void *read_files(void *unused)
{
    enum { CHUNK = 1 << 18 };
    char *buffer = allocated(malloc(CHUNK));
    for (size_t i; (i = next++) < count;) {
        int fd = open(files[i].path, O_RDONLY | O_NOFOLLOW | O_NOATIME);
        ssize_t got;
        if (fd < 0)
            fail(files[i].path);
        while ((got = read(fd, buffer, CHUNK)) > 0)
            bytes += got;
        close(fd);
    }
    free(buffer);
    return unused;
}

static void parallel(int threads, void *(*work)(void *))
{
    pthread_t ids[threads];
    for (int i = 0; i < threads; i++)
        if (pthread_create(&ids[i], NULL, work, NULL))
            fail("pthread_create");
    for (int i = 0; i < threads; i++)
        pthread_join(ids[i], NULL);
}

static int by_inode(const void *a, const void *b)
{
    const struct file *one = a, *other = b;
    return (one->inode > other->inode) - (one->inode < other->inode);
}

int main(int argc, char **argv)
{
    int threads = argc > 3 ? atoi(argv[2]) : 0;
    if (threads < 1 || (strcmp(argv[1], "walk") && strcmp(argv[1], "read"))) {
        fprintf(stderr, "usage: limits walk|read THREADS DIR...\n");
        return 2;
    }
    keep = !strcmp(argv[1], "read");
    for (int i = 3; i < argc; i++)
        push(argv[i], "");
    parallel(threads, walk);
    if (keep) {
        size_t distinct = 0;
        qsort(files, count, sizeof *files, by_inode);
        for (size_t i = 0; i < count; i++)
            if (!distinct || files[distinct - 1].inode != files[i].inode)
                files[distinct++] = files[i];
        count = distinct;
        parallel(threads, read_files);
    }
    printf("%zu names, %zu files, %llu bytes\n", (size_t)names, count, (unsigned long long)bytes);
    return 0;
}
