/* What the parts of cowops share. */
#ifndef COWOPS_H
#define COWOPS_H

#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#define _TIME_BITS 64

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
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

#if __SIZEOF_LONG__ == 4
#define wide(name, ...) syscall(__NR_##name##64, __VA_ARGS__)
/* A number of 64 bits, as two arguments of a system call. */
#define LONG64(value) (long)(value), (long)((long long)(value) >> 32)
#else
#define wide(name, ...) syscall(__NR_##name, __VA_ARGS__)
#define LONG64(value) (long)(value)
#endif

#define NOBODY 65534

/* The times as the kernel takes them where they have 64 bits. */
struct time64 {
    int64_t seconds, nanoseconds;
};
#if __SIZEOF_LONG__ == 4
#define sys_utimensat(dir, path, times, flags) syscall(__NR_utimensat_time64, dir, path, times, flags)
#else
#define sys_utimensat(dir, path, times, flags) syscall(__NR_utimensat, dir, path, times, flags)
#endif

/* What `-x` leaves out. */
/* Whether every step of a random sequence is nobody's. */
extern bool always_nobody;
extern bool without_pairs, without_places, without_children, without_directory_times;

/* Ends the program: something failed that is no part of what is tried. */
void die(const char *what) __attribute__((noreturn));
/* The name of an error number. */
const char *error_name(int number);

/* trees.c */

/* Whether a time is one that was set, not that of a change made just now. */
bool was_set(int64_t seconds);
/* Prints all there is to see of a name, but what differs from one tree to the next. */
void describe(int dir, const char *path, const char *shown);
/* The same of everything below the current directory, by name, and which names are links of each other. */
void dump(void);
/* The commands, which return an exit code. */
int make_fixture(const char *path);
int make_farm(const char *pristine, int count, const char *path, const char *root);
int make_copies(int count, const char *path, const char *root);
int dump_tree(const char *path, bool with_flags);
int dump_trees(int count, const char *path);
int check_shared(const char *pristine, const char *path, bool all);

/* enter.c */

/* Runs a command in the guest whose root is this directory. */
int enter(const char *root, char **command);

/* random.c */

int run_random(uint64_t seed, int steps, int count);

/* cowops.c: what the operations use */

typedef void operation(void);
void add_operation(const char *name, operation *run, bool harmless);

/* An operation, defined as a function is. */
#define OPERATION(name) OPERATION_(name, false)
/* One that leaves everything as it is, so that nothing needs to be copied for it. */
#define HARMLESS(name) OPERATION_(name, true)
#define OPERATION_(name, harmless)                                                                                    \
    static operation name;                                                                                            \
    __attribute__((constructor)) static void add_##name(void) { add_operation(#name, name, harmless); }               \
    static void name(void)

/* Prints what came of a step, as "ok" or the error's name; gives the result back. */
long step(const char *what, long result);
/* The same, with the number that is the result. */
long count(const char *what, long result);
/* The same for a descriptor: with its number and flags. */
int opened(const char *what, long result);
/* Prints a line. */
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Prints all there is to see of a name. */
void look(const char *path);
/* Prints whether a descriptor and a name are one file, with the same size, mode and owner. */
void agree(int fd, const char *path);
/* Reads on at the descriptor's offset, and prints what there is. */
void read_on(int fd);
/* Opens for reading, and seeks; must succeed. */
int reader(const char *path, int flags, off_t offset);

/* The block that follows runs in a child process, and what comes after the block when that has ended. */
#define IN_CHILD for (int in_child = begin_child(); in_child; end_child())
int begin_child(void);
void end_child(void) __attribute__((noreturn));
/* Gives up all privileges. */
void become_nobody(void);

#endif
