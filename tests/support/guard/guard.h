/* What the parts of the guard's test program share. */
#ifndef GUARD_H
#define GUARD_H

#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#ifndef __NR_fchmodat2
#define __NR_fchmodat2 452
#endif
#ifndef __NR_setxattrat
#define __NR_setxattrat 463
#define __NR_removexattrat 466
#endif
#ifndef __NR_file_getattr
#define __NR_file_getattr 468
#define __NR_file_setattr 469
#endif

/* A system call as it is, by its name. */
#define sys(name, ...) syscall(__NR_##name, ##__VA_ARGS__)

#define ADDRESS(of) (uintptr_t)(of)

#define SIZE 16384

/* What comes of an operation by the rules of the guard, on a marked file. */
enum kind {
    CHANGE,     /* EPERM, and nothing has changed */
    FLAGS,      /* the same, but for CAP_LINUX_IMMUTABLE in the initial user namespace */
    CAPABILITY, /* ENODATA, and nothing has changed */
    NAME,       /* as without the guard; the inode has not changed */
    READ,       /* the same */
    ATTACK,     /* whatever; the inode has not changed */
};

/* Runs in a process of its own, in a directory with these: `file`, the inode that it is about; `second`, another link
 * to it if it is marked; `other`, a private file with other content; `symlink`, which leads to `file`; `void`, a
 * directory. Returns 0, or -1 with errno. */
typedef long operation(void);
void add_operation(const char *name, enum kind kind, operation *run);

#define OPERATION(kind, name)                                                                                         \
    static operation name;                                                                                            \
    __attribute__((constructor)) static void add_##name(void) { add_operation(#name, kind, name); }                   \
    static long name(void)

/* What btrfs wants with BTRFS_IOC_ENCODED_WRITE (linux/btrfs.h), by ioctl(2) or io_uring. */
struct encoded {
    const struct iovec *vectors;
    unsigned long count;
    int64_t offset;
    uint64_t flags, length, unencoded_length, unencoded_offset;
    uint32_t compression, encryption;
    char reserved[64];
};
#define ENCODED_WRITE _IOC(_IOC_WRITE, 0x94, 64, sizeof(struct encoded))

/* Ends the program: something failed that is no part of what is tried. */
void die(const char *what) __attribute__((noreturn));
/* Opens `file`; -1 with errno. */
static inline int opened(int flags) { return open("file", flags | O_CLOEXEC, 0644); }
/* Opens `file` for reading; must succeed. */
int reader(void);
/* Opens `other`, which can be changed; must succeed. */
int other(void);
/* Gives up with ENOSYS: this kernel or filesystem has no such thing to try. */
static inline long absent(void)
{
    errno = ENOSYS;
    return -1;
}

#endif
