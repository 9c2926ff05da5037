/* What programs do to files. */
#include "guard.h"

#include <linux/openat2.h>
#include <sys/file.h>

/* Closes what an operation has opened; gives its result back. */
static long writing(int fd)
{
    long result = fd < 0 ? -1 : write(fd, "changed\n", 8);
    return result < 0 ? -1 : 0;
}

static long through_proc(int fd, int flags)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return writing(open(path, flags | O_CLOEXEC));
}

OPERATION(CHANGE, open_write) { return writing(opened(O_WRONLY)); }
OPERATION(CHANGE, open_read_write) { return writing(opened(O_RDWR)); }
OPERATION(CHANGE, open_append) { return writing(opened(O_WRONLY | O_APPEND)); }
OPERATION(CHANGE, open_create_truncate) { return writing(opened(O_WRONLY | O_CREAT | O_TRUNC)); }
OPERATION(CHANGE, open_read_truncate) { return opened(O_RDONLY | O_TRUNC); }
OPERATION(CHANGE, open_direct) { return opened(O_WRONLY | O_DIRECT); }
OPERATION(CHANGE, open_access_mode_3) { return opened(3); }
OPERATION(CHANGE, creat_call) { return writing(creat("file", 0644)); }
OPERATION(CHANGE, open_through_symlink) { return writing(open("symlink", O_WRONLY)); }
OPERATION(CHANGE, open_by_own_descriptor) { return through_proc(reader(), O_WRONLY); }
OPERATION(CHANGE, open_by_place) { return through_proc(opened(O_PATH), O_RDWR); }
OPERATION(CHANGE, openat2_call)
{
    struct open_how how = {.flags = O_WRONLY, .resolve = RESOLVE_BENEATH};
    return writing(sys(openat2, AT_FDCWD, "file", &how, sizeof how));
}
OPERATION(CHANGE, truncate_call) { return truncate("file", 100); }
OPERATION(CHANGE, truncate_longer) { return truncate("file", 1 << 20); }
OPERATION(CHANGE, map_shared)
{
    int fd = opened(O_RDWR);
    char *at = fd < 0 ? MAP_FAILED : mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        return -1;
    strcpy(at, "changed");
    return 0;
}

OPERATION(CHANGE, chmod_call) { return chmod("file", 0600); }
OPERATION(CHANGE, chmod_same) { return chmod("file", 0644); }
OPERATION(CHANGE, fchmod_call) { return fchmod(reader(), 0600); }
OPERATION(CHANGE, fchmodat_call) { return fchmodat(AT_FDCWD, "symlink", 04755, 0); }
OPERATION(CHANGE, fchmodat2_call) { return sys(fchmodat2, AT_FDCWD, "file", 0600, AT_SYMLINK_NOFOLLOW); }
OPERATION(CHANGE, fchmodat2_empty_path) { return sys(fchmodat2, opened(O_PATH), "", 0600, AT_EMPTY_PATH); }
OPERATION(CHANGE, chown_call) { return chown("file", 1000, 1000); }
OPERATION(CHANGE, lchown_call) { return lchown("file", -1, 1000); }
OPERATION(CHANGE, fchown_call) { return fchown(reader(), 1000, -1); }
OPERATION(CHANGE, fchownat_empty_path) { return fchownat(opened(O_PATH), "", 1000, 1000, AT_EMPTY_PATH); }
OPERATION(CHANGE, utimensat_now) { return utimensat(AT_FDCWD, "file", NULL, 0); }
OPERATION(CHANGE, utimensat_set)
{
    const struct timespec times[2] = {{5, 5}, {6, 6}};
    return utimensat(AT_FDCWD, "symlink", times, 0);
}
OPERATION(CHANGE, futimens_call)
{
    const struct timespec times[2] = {{0, UTIME_OMIT}, {6, 6}};
    return futimens(reader(), times);
}
OPERATION(CHANGE, utimes_call)
{
    const struct timeval times[2] = {{5, 5}, {6, 6}};
    return utimes("file", times);
}

OPERATION(CHANGE, setxattr_call) { return setxattr("file", "user.two", "2", 1, 0); }
OPERATION(CHANGE, setxattr_trusted) { return setxattr("file", "trusted.two", "2", 1, 0); }
OPERATION(CHANGE, lsetxattr_call) { return lsetxattr("file", "user.one", "2", 1, XATTR_REPLACE); }
OPERATION(CHANGE, fsetxattr_call) { return fsetxattr(reader(), "user.two", "2", 1, 0); }
OPERATION(CHANGE, setxattrat_call)
{
    struct {
        uint64_t value;
        uint32_t size, flags;
    } arguments = {(uintptr_t)"2", 1, 0};
    return sys(setxattrat, AT_FDCWD, "file", 0, "user.two", &arguments, sizeof arguments);
}
OPERATION(CHANGE, set_capability)
{
    static const uint32_t capability[5] = {0x02000001, 1, 0, 0, 0};
    return setxattr("file", "security.capability", capability, sizeof capability, 0);
}
OPERATION(CHANGE, removexattr_call) { return removexattr("file", "user.one"); }
OPERATION(CHANGE, fremovexattr_call) { return fremovexattr(reader(), "user.one"); }
OPERATION(CHANGE, removexattrat_call) { return sys(removexattrat, AT_FDCWD, "file", 0, "user.one"); }
OPERATION(CAPABILITY, remove_capability) { return removexattr("file", "security.capability"); }
OPERATION(CAPABILITY, remove_capability_by_descriptor) { return fremovexattr(reader(), "security.capability"); }

static const struct {
    uint32_t version;
    struct {
        uint16_t tag, permissions;
        uint32_t id;
    } entries[5];
} acl = {2, {{1, 6, -1}, {2, 7, 1000}, {4, 4, -1}, {0x10, 7, -1}, {0x20, 4, -1}}};
OPERATION(CHANGE, set_acl) { return setxattr("file", "system.posix_acl_access", &acl, sizeof acl, 0); }
OPERATION(CHANGE, set_acl_by_descriptor) { return fsetxattr(reader(), "system.posix_acl_access", &acl, sizeof acl, 0); }
OPERATION(CHANGE, remove_acl) { return removexattr("file", "system.posix_acl_access"); }

static long with_flags(int set, int clear)
{
    int fd = reader(), flags;
    if (ioctl(fd, FS_IOC_GETFLAGS, &flags))
        return -1;
    flags = (flags | set) & ~clear;
    return ioctl(fd, FS_IOC_SETFLAGS, &flags);
}
OPERATION(FLAGS, clear_mark) { return with_flags(0, FS_NOATIME_FL); }
OPERATION(FLAGS, set_no_dump) { return with_flags(FS_NODUMP_FL, 0); }
OPERATION(FLAGS, set_sync) { return with_flags(FS_SYNC_FL, 0); }
OPERATION(FLAGS, clear_mark_by_xflags)
{
    struct fsxattr more;
    int fd = reader();
    if (ioctl(fd, FS_IOC_FSGETXATTR, &more))
        return -1;
    more.fsx_xflags &= ~FS_XFLAG_NOATIME;
    return ioctl(fd, FS_IOC_FSSETXATTR, &more);
}
OPERATION(FLAGS, file_setattr_call)
{
    struct {
        uint64_t xflags;
        uint32_t extent_size, extents, project, cow_extent_size;
    } attributes = {0};
    if (sys(file_getattr, AT_FDCWD, "file", &attributes, sizeof attributes, 0))
        return -1;
    attributes.xflags &= ~(uint64_t)FS_XFLAG_NOATIME;
    return sys(file_setattr, AT_FDCWD, "file", &attributes, sizeof attributes, 0);
}

/* What is as without the guard. */

OPERATION(READ, open_read) { char byte; return read(reader(), &byte, 1) - 1; }
OPERATION(READ, stat_call) { struct stat status; return stat("file", &status); }
OPERATION(READ, access_write) { return access("file", W_OK); }
OPERATION(READ, place) { return opened(O_PATH); }
OPERATION(READ, listxattr_call) { char names[256]; return listxattr("file", names, sizeof names) < 0 ? -1 : 0; }
OPERATION(READ, get_flags) { int flags; return ioctl(reader(), FS_IOC_GETFLAGS, &flags); }
OPERATION(READ, is_terminal) { return isatty(reader()) ? 0 : -1; }
OPERATION(READ, locks)
{
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET};
    int fd = reader();
    return flock(fd, LOCK_EX) | fcntl(fd, F_SETLK, &lock) | fsync(fd);
}
OPERATION(READ, map_private)
{
    char *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, reader(), 0);
    if (at == MAP_FAILED)
        return -1;
    strcpy(at, "changed");
    return 0;
}
OPERATION(READ, create_exclusive) { return opened(O_WRONLY | O_CREAT | O_EXCL); }

OPERATION(NAME, unlink_call) { return unlink("file"); }
OPERATION(NAME, unlinkat_call) { return unlinkat(AT_FDCWD, "file", 0); }
OPERATION(NAME, unlink_open) { return reader() < 0 ? -1 : unlink("file"); }
OPERATION(NAME, rmdir_wrongly) { return rmdir("file"); }
OPERATION(NAME, rename_away) { return rename("file", "void/file"); }
OPERATION(NAME, rename_over) { return rename("other", "file"); }
OPERATION(NAME, rename_over_other) { return rename("file", "other"); }
OPERATION(NAME, rename_onto_link) { return link("file", "third") ? -1 : rename("third", "file"); }
OPERATION(NAME, rename_no_replace) { return sys(renameat2, AT_FDCWD, "file", AT_FDCWD, "new", RENAME_NOREPLACE); }
OPERATION(NAME, exchange) { return sys(renameat2, AT_FDCWD, "file", AT_FDCWD, "other", RENAME_EXCHANGE); }
OPERATION(NAME, exchange_with_directory) { return sys(renameat2, AT_FDCWD, "file", AT_FDCWD, "void", RENAME_EXCHANGE); }
OPERATION(NAME, whiteout) { return sys(renameat2, AT_FDCWD, "file", AT_FDCWD, "new", RENAME_WHITEOUT); }
OPERATION(NAME, link_call) { return link("file", "void/third"); }
OPERATION(NAME, link_by_descriptor)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", reader());
    return linkat(AT_FDCWD, path, AT_FDCWD, "third", AT_SYMLINK_FOLLOW);
}
OPERATION(NAME, link_by_empty_path) { return linkat(reader(), "", AT_FDCWD, "third", AT_EMPTY_PATH); }
OPERATION(NAME, replace_as_package_managers_do)
{
    int fd = open("file.new", O_WRONLY | O_CREAT | O_EXCL, 0644);
    if (writing(fd) || fchmod(fd, 0755) || link("file", "file.old") || rename("file.new", "file"))
        return -1;
    return unlink("file.old");
}
