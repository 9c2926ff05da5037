/* Operations on what files are: mode, owner, times, attributes, flags. */
#include "cowops.h"

#include <linux/fs.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/xattr.h>

/* All the same on a name: OPERATION(NAME) that does CALL and looks at PATH. */
#define ON_NAME(name, path, call)                                                                                     \
    OPERATION(name)                                                                                                   \
    {                                                                                                                 \
        step(#call, call);                                                                                            \
        look(path);                                                                                                   \
    }

#ifdef __NR_chmod
ON_NAME(chmod_call, "file", sys(chmod, "file", 0600))
ON_NAME(chmod_symlink, "file", sys(chmod, "d/up", 0600))
ON_NAME(chmod_same, "file", sys(chmod, "file", 0644))
ON_NAME(chown_call, "file", sys(chown, "file", 5, 6))
ON_NAME(chown_nobody, "file", sys(chown, "file", -1, -1))
ON_NAME(chown_group_only, "setid", sys(chown, "setid", -1, 6))
ON_NAME(chown_symlink, "file", sys(chown, "link", 5, 6))
ON_NAME(lchown_call, "file", sys(lchown, "file", 5, 6))
ON_NAME(lchown_symlink, "link", sys(lchown, "link", 5, 6))
#endif
#ifdef __NR_chown32
ON_NAME(chown32_call, "file", sys(chown32, "file", 100000, 100001))
ON_NAME(lchown32_call, "file", sys(lchown32, "file", 100000, -1))
#endif
ON_NAME(fchmodat_call, "d/one", sys(fchmodat, AT_FDCWD, "d/one", 04711))
ON_NAME(fchmodat_attributes, "attributes", sys(fchmodat, AT_FDCWD, "attributes", 0600))
ON_NAME(fchmodat2_call, "file", sys(fchmodat2, AT_FDCWD, "file", 0600, 0))
ON_NAME(fchmodat2_no_follow, "file", sys(fchmodat2, AT_FDCWD, "file", 0600, AT_SYMLINK_NOFOLLOW))
ON_NAME(fchmodat2_symlink, "file", sys(fchmodat2, AT_FDCWD, "link", 0600, AT_SYMLINK_NOFOLLOW))
ON_NAME(fchownat_call, "file", sys(fchownat, AT_FDCWD, "file", 5, 6, 0))
ON_NAME(fchownat_setid, "setid", sys(fchownat, AT_FDCWD, "setid", 5, 6, 0))
ON_NAME(fchownat_attributes, "attributes", sys(fchownat, AT_FDCWD, "attributes", 5, -1, 0))
ON_NAME(fchownat_no_follow, "file", sys(fchownat, AT_FDCWD, "file", 5, 6, AT_SYMLINK_NOFOLLOW))
ON_NAME(fchownat_symlink, "link", sys(fchownat, AT_FDCWD, "link", 5, 6, AT_SYMLINK_NOFOLLOW))

/* On a descriptor that no data can be read from. */
#define BY_PATH(name, call)                                                                                           \
    OPERATION(name)                                                                                                   \
    {                                                                                                                 \
        int fd = open("file", O_PATH | O_CLOEXEC);                                                                    \
        step(#call, call);                                                                                            \
        agree(fd, "file");                                                                                            \
        note("flags %#o %d", fcntl(fd, F_GETFL), fcntl(fd, F_GETFD));                                                 \
        look("file");                                                                                                 \
    }
static const struct time64 times[2] = {{1000001000, 5}, {1000002000, 123456789}};
BY_PATH(fchmodat2_empty_path, sys(fchmodat2, fd, "", 0600, AT_EMPTY_PATH))
BY_PATH(fchownat_empty_path, sys(fchownat, fd, "", 5, 6, AT_EMPTY_PATH))
BY_PATH(utimensat_empty_path, sys_utimensat(fd, "", times, AT_EMPTY_PATH))
BY_PATH(path_fchmod, fchmod(fd, 0600))
BY_PATH(path_fchown, fchown(fd, 5, 6))
BY_PATH(path_fsetxattr, fsetxattr(fd, "user.new", "x", 1, 0))
BY_PATH(path_futimens, futimens(fd, NULL))
BY_PATH(path_linkat, linkat(fd, "", AT_FDCWD, "linked", AT_EMPTY_PATH))

/* Times */

struct time32 {
    long seconds, microseconds;
};
#ifdef __NR_utime
static const struct {
    long access, change;
} seconds = {1000001000, 1000002000};
static const struct time32 microseconds[2] = {{1000001000, 5}, {1000002000, 123456}};
ON_NAME(utime_call, "file", sys(utime, "file", &seconds))
ON_NAME(utime_now, "file", sys(utime, "file", NULL))
ON_NAME(utimes_call, "file", sys(utimes, "file", microseconds))
ON_NAME(utimes_symlink, "file", sys(utimes, "link", microseconds))
ON_NAME(futimesat_call, "d/one", sys(futimesat, open("d", O_RDONLY), "one", microseconds))
OPERATION(futimesat_descriptor)
{
    int fd = reader("file", 0, 3);
    step("futimesat", sys(futimesat, fd, NULL, microseconds));
    agree(fd, "file");
    look("file");
}
#endif
#if __SIZEOF_LONG__ == 4
static const struct time32 nanoseconds[2] = {{1000001000, 5}, {1000002000, 123456789}};
ON_NAME(utimensat32_call, "file", sys(utimensat, AT_FDCWD, "file", nanoseconds, 0))
OPERATION(utimensat32_descriptor)
{
    int fd = reader("file", 0, 3);
    step("utimensat", sys(utimensat, fd, NULL, nanoseconds, 0));
    agree(fd, "file");
    look("file");
}
#endif
static const struct time64 only_access[2] = {{1000001000, 5}, {0, UTIME_OMIT}};
static const struct time64 only_change[2] = {{0, UTIME_OMIT}, {1000002000, 7}};
static const struct time64 nothing[2] = {{0, UTIME_OMIT}, {0, UTIME_OMIT}};
static const struct time64 now[2] = {{0, UTIME_NOW}, {0, UTIME_NOW}};
static const struct time64 wrong[2] = {{0, 2000000000}, {0, 0}};
ON_NAME(utimensat_call, "file", sys_utimensat(AT_FDCWD, "file", times, 0))
ON_NAME(utimensat_symlink, "file", sys_utimensat(AT_FDCWD, "link", times, 0))
ON_NAME(utimensat_no_follow, "link", sys_utimensat(AT_FDCWD, "link", times, AT_SYMLINK_NOFOLLOW))
ON_NAME(utimensat_file_no_follow, "file", sys_utimensat(AT_FDCWD, "file", times, AT_SYMLINK_NOFOLLOW))
ON_NAME(utimensat_now, "file", sys_utimensat(AT_FDCWD, "file", NULL, 0))
ON_NAME(utimensat_both_now, "file", sys_utimensat(AT_FDCWD, "file", now, 0))
ON_NAME(utimensat_access, "file", sys_utimensat(AT_FDCWD, "file", only_access, 0))
ON_NAME(utimensat_change, "file", sys_utimensat(AT_FDCWD, "file", only_change, 0))
HARMLESS(utimensat_nothing)
{
    step("omit", sys_utimensat(AT_FDCWD, "file", nothing, 0));
    step("wrong", sys_utimensat(AT_FDCWD, "file", wrong, 0));
    step("flags", sys_utimensat(AT_FDCWD, "file", times, 0x4000));
    step("no path", sys_utimensat(AT_FDCWD, NULL, times, 0));
    look("file");
}
OPERATION(access_time_kept)
{
    struct stat status;
    step("utimensat", sys_utimensat(AT_FDCWD, "file", times, 0));
    step("chmod", chmod("file", 0600));
    step("setxattr", setxattr("file", "user.new", "x", 1, 0));
    stat("file", &status);
    note("%lld.%09ld %lld.%09ld", (long long)status.st_atim.tv_sec, status.st_atim.tv_nsec,
         (long long)status.st_mtim.tv_sec, status.st_mtim.tv_nsec);
}

/* Attributes */

ON_NAME(setxattr_call, "file", sys(setxattr, "file", "user.new", "value", (size_t)5, 0))
ON_NAME(setxattr_create, "attributes", sys(setxattr, "attributes", "user.one", "value", (size_t)5, XATTR_CREATE))
ON_NAME(setxattr_replace, "attributes", sys(setxattr, "attributes", "user.one", "value", (size_t)5, XATTR_REPLACE))
ON_NAME(setxattr_replace_missing, "file", sys(setxattr, "file", "user.one", "value", (size_t)5, XATTR_REPLACE))
ON_NAME(setxattr_empty, "file", sys(setxattr, "file", "user.new", NULL, (size_t)0, 0))
ON_NAME(setxattr_trusted, "file", sys(setxattr, "file", "trusted.new", "value", (size_t)5, 0))
ON_NAME(setxattr_symlink, "file", sys(setxattr, "d/up", "user.new", "value", (size_t)5, 0))
ON_NAME(lsetxattr_call, "file", sys(lsetxattr, "file", "user.new", "value", (size_t)5, 0))
ON_NAME(lsetxattr_symlink, "link", sys(lsetxattr, "link", "trusted.new", "value", (size_t)5, 0))
ON_NAME(removexattr_call, "attributes", sys(removexattr, "attributes", "user.one"))
ON_NAME(removexattr_capability, "attributes", sys(removexattr, "attributes", "security.capability"))
ON_NAME(removexattr_acl, "attributes", sys(removexattr, "attributes", "system.posix_acl_access"))
ON_NAME(removexattr_missing, "file", sys(removexattr, "file", "user.one"))
ON_NAME(lremovexattr_call, "attributes", sys(lremovexattr, "attributes", "user.two"))
OPERATION(setxattr_wrongly)
{
    step("user on symlink", lsetxattr("link", "user.new", "x", 1, 0));
    step("unknown", setxattr("file", "unknown.new", "x", 1, 0));
    step("no name", setxattr("file", "", "x", 1, 0));
    step("flags", setxattr("file", "user.new", "x", 1, 99));
    step("large", sys(setxattr, "file", "user.new", "x", (size_t)100000, 0));
    step("missing", setxattr("missing", "user.new", "x", 1, 0));
}
static struct {
    uint64_t value;
    uint32_t size, flags;
} value = {0, 5, 0};
static long setxattrat(int dir, const char *path, unsigned flags)
{
    value.value = (uintptr_t)"value";
    return sys(setxattrat, dir, path, flags, "user.new", &value, sizeof value);
}
ON_NAME(setxattrat_call, "file", setxattrat(AT_FDCWD, "file", 0))
ON_NAME(setxattrat_symlink, "file", setxattrat(AT_FDCWD, "link", 0))
ON_NAME(setxattrat_no_follow, "link", setxattrat(AT_FDCWD, "link", AT_SYMLINK_NOFOLLOW))
ON_NAME(removexattrat_call, "attributes", sys(removexattrat, AT_FDCWD, "attributes", 0, "user.one"))
BY_PATH(setxattrat_empty_path, setxattrat(fd, "", AT_EMPTY_PATH))

/* Flags */

static long change_flags(int fd, unsigned set, unsigned clear)
{
    unsigned flags;
    if (ioctl(fd, FS_IOC_GETFLAGS, &flags))
        return -1;
    flags = (flags | set) & ~clear;
    return ioctl(fd, FS_IOC_SETFLAGS, &flags);
}
/* As chattr does it: what was there stays. */
static long no_dump(int fd) { return change_flags(fd, FS_NODUMP_FL, 0); }
/* As a program does that wants to write next. */
static long no_dump_mutable(int fd) { return change_flags(fd, FS_NODUMP_FL, FS_IMMUTABLE_FL); }
static long extended_no_dump(int fd)
{
    struct fsxattr attributes;
    if (ioctl(fd, FS_IOC_FSGETXATTR, &attributes))
        return -1;
    attributes.fsx_xflags |= FS_XFLAG_NODUMP;
    return ioctl(fd, FS_IOC_FSSETXATTR, &attributes);
}
OPERATION(flags_immutable)
{
    int fd = reader("file", 0, 0);
    step("set", change_flags(fd, FS_IMMUTABLE_FL, 0));
    step("write", open("file", O_WRONLY));
    step("unlink", unlink("file"));
    step("clear", change_flags(fd, 0, FS_IMMUTABLE_FL));
    step("write", open("file", O_WRONLY));
    look("file");
}
OPERATION(flags_append_only)
{
    int fd = reader("file", 0, 0);
    step("set", change_flags(fd, FS_APPEND_FL, FS_IMMUTABLE_FL));
    opened("write", open("file", O_WRONLY));
    opened("append", open("file", O_WRONLY | O_APPEND));
    look("file");
    step("clear", change_flags(fd, 0, FS_APPEND_FL));
    look("file");
}
HARMLESS(flags_read)
{
    unsigned flags = 0;
    struct fsxattr attributes;
    step("flags", ioctl(reader("attributes", 0, 0), FS_IOC_GETFLAGS, &flags));
    note("no dump: %d", !!(flags & FS_NODUMP_FL));
    step("attributes", ioctl(reader("attributes", 0, 0), FS_IOC_FSGETXATTR, &attributes));
}
OPERATION(flags_wrongly)
{
    int fd = reader("file", 0, 0);
    unsigned flags = 1u << 31;
    step("flags", ioctl(fd, FS_IOC_SETFLAGS, &flags) < 0 ? -1 : 0);
    step("not a file", ioctl(open("file", O_PATH), FS_IOC_SETFLAGS, &flags));
    step("no descriptor", ioctl(99, FS_IOC_SETFLAGS, &flags));
}
static struct {
    uint64_t xflags;
    uint32_t extsize, nextents, projid, cowextsize;
} file_attributes;
OPERATION(file_setattr_call)
{
    step("get", sys(file_getattr, AT_FDCWD, "file", &file_attributes, sizeof file_attributes, 0));
    file_attributes.xflags |= FS_XFLAG_NODUMP;
    step("set", sys(file_setattr, AT_FDCWD, "file", &file_attributes, sizeof file_attributes, 0));
    look("file");
}
OPERATION(file_setattr_empty_path)
{
    int fd = open("file", O_PATH);
    file_attributes.xflags = FS_XFLAG_NODUMP;
    step("set", sys(file_setattr, fd, "", &file_attributes, sizeof file_attributes, AT_EMPTY_PATH));
    agree(fd, "file");
    look("file");
}

/* By a descriptor that is open for reading. */

static long change_mode(int fd) { return sys(fchmod, fd, 0600); }
static long change_owner(int fd) { return sys(fchown, fd, 5, 6); }
#ifdef __NR_fchown32
static long change_owner32(int fd) { return sys(fchown32, fd, 100000, 6); }
#endif
static long change_times(int fd) { return sys_utimensat(fd, NULL, times, 0); }
static long change_times_now(int fd) { return sys_utimensat(fd, NULL, NULL, 0); }
static long set_xattr(int fd) { return sys(fsetxattr, fd, "user.new", "value", (size_t)5, 0); }
static long remove_xattr(int fd) { return sys(fremovexattr, fd, "user.one"); }
static long mode_by_empty_path(int fd) { return sys(fchmodat2, fd, "", 0600, AT_EMPTY_PATH); }
static long owner_by_empty_path(int fd) { return sys(fchownat, fd, "", 5, 6, AT_EMPTY_PATH); }

static void tell(int fd, const char *path)
{
    note("flags %#o %d", fcntl(fd, F_GETFL), fcntl(fd, F_GETFD));
    read_on(fd);
    agree(fd, path);
}

static void by_reader(long change(int), const char *path)
{
    int fd = reader(path, O_CLOEXEC | O_NOATIME, 100);
    read_on(fd);
    step("change", change(fd));
    tell(fd, path);
    step("again", change(fd));
    look(path);
}
static void by_copy(long change(int), const char *path)
{
    int fd = reader(path, 0, 100), copy = fcntl(fd, F_DUPFD_CLOEXEC, 50);
    read_on(fd);
    step("change", change(copy));
    tell(fd, path);
    tell(copy, path);
    lseek(fd, 7, SEEK_SET);
    note("the copy is at %lld", (long long)lseek(copy, 0, SEEK_CUR));
    look(path);
}
static void by_child(long change(int), const char *path)
{
    int fd = reader(path, 0, 100);
    IN_CHILD {
        read_on(fd);
        step("change", change(fd));
        tell(fd, path);
    }
    tell(fd, path);
    look(path);
}
#define BY_DESCRIPTOR(change, path)                                                                                   \
    OPERATION(reader_##change) { by_reader(change, path); }                                                           \
    OPERATION(copy_##change) { by_copy(change, path); }                                                               \
    OPERATION(child_##change) { by_child(change, path); }
BY_DESCRIPTOR(change_mode, "file")
BY_DESCRIPTOR(change_owner, "setid")
#ifdef __NR_fchown32
BY_DESCRIPTOR(change_owner32, "setid")
#endif
BY_DESCRIPTOR(change_times, "file")
BY_DESCRIPTOR(change_times_now, "file")
BY_DESCRIPTOR(set_xattr, "file")
BY_DESCRIPTOR(remove_xattr, "attributes")
BY_DESCRIPTOR(mode_by_empty_path, "file")
BY_DESCRIPTOR(owner_by_empty_path, "file")
BY_DESCRIPTOR(no_dump, "file")
BY_DESCRIPTOR(no_dump_mutable, "file")
BY_DESCRIPTOR(extended_no_dump, "file")

OPERATION(writer_changes_all)
{
    int fd = opened("open", open("attributes", O_RDWR));
    step("mode", change_mode(fd));
    step("owner", change_owner(fd));
    step("xattr", set_xattr(fd));
    step("xattr", remove_xattr(fd));
    step("flags", no_dump(fd));
    step("times", change_times(fd));
    tell(fd, "attributes");
    look("attributes");
}
OPERATION(readers_of_one_file)
{
    int first = reader("file", 0, 10), second = reader("file", 0, 20), path = open("file", O_PATH);
    step("fchmod", change_mode(first));
    tell(first, "file");
    tell(second, "file");
    agree(path, "file");
    step("fchown", change_owner(second));
    tell(first, "file");
    tell(second, "file");
}
OPERATION(mode_and_then_write)
{
    int fd = reader("file", 0, 10), writer;
    step("fchmod", change_mode(fd));
    writer = opened("open", open("file", O_WRONLY));
    count("write", pwrite(writer, "changed", 7, 12));
    tell(fd, "file");
    agree(writer, "file");
}
OPERATION(write_and_then_mode)
{
    int fd = reader("file", 0, 10), writer = opened("open", open("file", O_WRONLY));
    step("fchmod", change_mode(fd));
    count("write", pwrite(writer, "changed", 7, 12));
    tell(fd, "file");
    agree(writer, "file");
}
OPERATION(mode_by_reader_of_pair)
{
    int fd = reader("pair", 0, 10);
    step("fchmod", change_mode(fd));
    tell(fd, "pair");
    agree(fd, "d/pair");
    look("d/pair");
}
OPERATION(mode_after_unlink)
{
    int fd = reader("file", 0, 10);
    struct stat status;
    step("unlink", unlink("file"));
    step("fchmod", change_mode(fd));
    step("fchown", change_owner(fd));
    step("futimens", change_times(fd));
    step("fsetxattr", set_xattr(fd));
    step("flags", no_dump(fd));
    read_on(fd);
    fstat(fd, &status);
    note("%o %u:%u %lld %lld", status.st_mode, status.st_uid, status.st_gid, (long long)status.st_size,
         (long long)status.st_mtim.tv_sec);
}
OPERATION(mode_after_rename_over)
{
    int fd = reader("file", 0, 10);
    struct stat status;
    step("rename", rename("own", "file"));
    step("fchmod", change_mode(fd));
    fstat(fd, &status);
    note("%o", status.st_mode);
    read_on(fd);
    look("file");
}
OPERATION(mode_after_rename)
{
    int fd = reader("file", 0, 10);
    step("rename", rename("file", "void/file"));
    step("symlink", symlink("own", "file"));
    step("fchmod", change_mode(fd));
    tell(fd, "void/file");
    look("void/file");
    look("own");
}
OPERATION(mode_after_link)
{
    int fd = reader("file", 0, 10);
    step("link", link("file", "linked"));
    step("unlink", unlink("file"));
    step("fchmod", change_mode(fd));
    tell(fd, "linked");
    look("linked");
}
OPERATION(lock_kept)
{
    int fd = reader("file", 0, 0);
    step("lock", flock(fd, LOCK_EX));
    step("fchmod", change_mode(fd));
    step("another", flock(reader("file", 0, 0), LOCK_EX | LOCK_NB));
}
OPERATION(lock_kept_before_write)
{
    step("lock", flock(reader("file", 0, 0), LOCK_EX));
    step("another", flock(open("file", O_RDWR), LOCK_EX | LOCK_NB));
}
OPERATION(record_lock_kept)
{
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET};
    int fd = reader("file", 0, 0);
    step("lock", fcntl(fd, F_SETLK, &lock));
    step("fchmod", change_mode(fd));
    IN_CHILD {
        lock = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET};
        step("another", fcntl(open("file", O_RDWR), F_SETLK, &lock));
    }
}
HARMLESS(not_files)
{
    int ends[2], directory = open("d", O_RDONLY), fifo = open("fifo", O_RDONLY | O_NONBLOCK);
    int device = open("/dev/null", O_RDWR), memory = sys(memfd_create, "memory", 0);
    unsigned flags = 0;
    if (pipe(ends))
        die("pipe");
    step("pipe", fchmod(ends[0], 0600));
    step("memory", fchmod(memory, 0600));
    step("memory", wide(ftruncate, memory, LONG64(100)));
    step("fifo", fchmod(fifo, 0600));
    step("fifo", ioctl(fifo, FS_IOC_SETFLAGS, &flags));
    step("directory", fchmod(directory, 0700));
    step("directory", fchown(directory, 5, 6));
    step("directory", futimens(directory, NULL));
    step("device", fsetxattr(device, "user.new", "x", 1, 0));
    step("none", fchmod(-1, 0600));
    step("none", fchown(99, 1, 1));
    step("none", sys(fchmodat2, 99, "", 0600, AT_EMPTY_PATH));
    step("none", sys_utimensat(99, NULL, times, 0));
    look("d");
    look("fifo");
}
OPERATION(on_directories_and_links)
{
    step("chmod", chmod("d", 0700));
    step("chown", lchown("dangling", 5, 6));
    step("chmod", chmod("dangling", 0700));
    step("chmod", chmod("fifo", 0600));
    step("own", chmod("own", 0600));
    step("times", sys_utimensat(AT_FDCWD, "void", times, 0));
    look("d");
    look("dangling");
}
