/* Operations on what files contain. */
#include "cowops.h"

#include <linux/falloc.h>
#include <linux/openat2.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>

static void write_and_close(int fd)
{
    if (fd < 0)
        return;
    count("write", write(fd, "changed\n", 8));
    step("close", close(fd));
}

/* Opens, writes, and looks. */
static void written(const char *path, int flags)
{
    write_and_close(opened(path, sys(openat, AT_FDCWD, path, flags, 0600)));
    look(path);
}

OPERATION(append) { written("file", O_WRONLY | O_APPEND); }
OPERATION(append_reading) { written("file", O_RDWR | O_APPEND); }
OPERATION(append_close_on_exec) { written("file", O_WRONLY | O_APPEND | O_CLOEXEC); }
OPERATION(truncate_writing) { written("file", O_WRONLY | O_TRUNC); }
OPERATION(truncate_reading) { written("file", O_RDONLY | O_TRUNC); }
OPERATION(truncate_both) { written("file", O_RDWR | O_TRUNC); }
OPERATION(write_only) { written("file", O_WRONLY); }
OPERATION(read_write) { written("file", O_RDWR); }
OPERATION(access_mode_three) { written("file", O_ACCMODE); }
OPERATION(create_existing) { written("file", O_WRONLY | O_CREAT); }
OPERATION(create_existing_truncate) { written("file", O_WRONLY | O_CREAT | O_TRUNC); }
OPERATION(create_reading_truncate) { written("file", O_RDONLY | O_CREAT | O_TRUNC); }
OPERATION(create_new) { written("new", O_WRONLY | O_CREAT); }
OPERATION(create_through_dangling) { written("dangling", O_WRONLY | O_CREAT); look("nowhere"); }
OPERATION(write_directly) { opened("direct", open("file", O_RDWR | O_DIRECT)); }
OPERATION(write_synchronously) { written("file", O_WRONLY | O_SYNC | O_NOATIME); }
OPERATION(write_nonblocking) { written("file", O_WRONLY | O_NONBLOCK | O_NOCTTY); }
OPERATION(write_no_follow) { written("file", O_WRONLY | O_NOFOLLOW); }
OPERATION(write_other) { written("other", O_WRONLY); }
OPERATION(write_empty) { written("empty", O_WRONLY); }
OPERATION(write_program) { written("program", O_WRONLY); }
OPERATION(write_setid) { written("setid", O_WRONLY); }
OPERATION(write_attributes) { written("attributes", O_WRONLY); }
OPERATION(write_sparse) { written("sparse", O_WRONLY); }
OPERATION(write_in_sticky) { written("sticky/file", O_WRONLY | O_CREAT); }
OPERATION(truncate_attributes) { written("attributes", O_WRONLY | O_TRUNC); }
OPERATION(write_own) { written("own", O_WRONLY); }
OPERATION(write_nothing)
{
    int fd = opened("open", open("file", O_RDWR));
    read_on(fd);
    agree(fd, "file");
    close(fd);
    look("file");
}

HARMLESS(only_read) { reader("file", O_RDONLY, 10); written("file", O_RDONLY); }
HARMLESS(create_reading) { written("file", O_RDONLY | O_CREAT); }
HARMLESS(create_exclusively)
{
    written("file", O_WRONLY | O_CREAT | O_EXCL);
    written("dangling", O_WRONLY | O_CREAT | O_EXCL);
}
HARMLESS(path_only) { written("file", O_WRONLY | O_PATH); written("file", O_RDWR | O_TRUNC | O_PATH); }
HARMLESS(file_as_directory)
{
    written("file", O_WRONLY | O_DIRECTORY);
    written("file", O_WRONLY | O_CREAT | O_DIRECTORY);
}
HARMLESS(no_follow_symlink)
{
    written("link", O_WRONLY | O_NOFOLLOW);
    written("link", O_WRONLY | O_PATH | O_NOFOLLOW);
}
HARMLESS(write_directory)
{
    written("d", O_WRONLY);
    written("d", O_RDWR | O_CREAT);
    written("d", O_RDONLY | O_DIRECTORY);
}
HARMLESS(write_loop)
{
    written("loop", O_WRONLY);
    written("dangling", O_WRONLY);
    written("missing", O_RDWR | O_TRUNC);
}
HARMLESS(write_fifo)
{
    int reading = opened("read", open("fifo", O_RDONLY | O_NONBLOCK));
    written("fifo", O_WRONLY | O_NONBLOCK);
    read_on(reading);
    close(reading);
    opened("nobody reads", open("fifo", O_WRONLY | O_NONBLOCK));
}
HARMLESS(write_device)
{
    written("/dev/null", O_WRONLY | O_TRUNC);
    written("/dev/null", O_RDWR | O_CREAT);
}

OPERATION(creat_call)
{
#ifdef __NR_creat
    write_and_close(opened("creat", sys(creat, "file", 0600)));
#else
    write_and_close(opened("creat", creat("file", 0600)));
#endif
    look("file");
}

OPERATION(open_call)
{
#ifdef __NR_open
    write_and_close(opened("open", sys(open, "file", O_WRONLY | O_CREAT, 0600)));
    write_and_close(opened("open", sys(open, "d/one", O_RDONLY | O_TRUNC)));
#else
    note("no such call");
#endif
    look("file");
    look("d/one");
}

OPERATION(open_twice)
{
    int first = opened("first", open("file", O_RDWR)), second = opened("second", open("file", O_WRONLY | O_APPEND));
    count("write", write(second, "changed\n", 8));
    lseek(first, -12, SEEK_END);
    read_on(first);
    agree(first, "file");
    agree(second, "file");
}

OPERATION(lowest_descriptor)
{
    int fd = reader("own", 0, 0);
    int kept = dup(fd);
    close(fd);
    opened("write", open("file", O_WRONLY));
    opened("write", open("other", O_WRONLY | O_CLOEXEC));
    close(kept);
    opened("write", open("program", O_RDWR));
}

OPERATION(umask_kept)
{
    umask(077);
    opened("new", open("new", O_WRONLY | O_CREAT, 0666));
    opened("existing", open("file", O_WRONLY | O_CREAT, 0666));
    look("new");
    look("file");
}

OPERATION(map_shared)
{
    int fd = opened("open", open("d/one", O_RDWR));
    char *map = mmap(NULL, 1200, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    step("mmap", map == MAP_FAILED ? -1 : 0);
    if (map == MAP_FAILED)
        return;
    memcpy(map + 100, "mapped", 6);
    step("msync", msync(map, 1200, MS_SYNC));
    munmap(map, 1200);
    close(fd);
    look("d/one");
}

HARMLESS(map_shared_reader)
{
    int fd = reader("d/one", 0, 0);
    void *map = mmap(NULL, 1200, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    step("mmap", map == MAP_FAILED ? -1 : 0);
    map = mmap(NULL, 1200, PROT_READ, MAP_SHARED, fd, 0);
    step("mprotect", mprotect(map, 1200, PROT_READ | PROT_WRITE));
    map = mmap(NULL, 1200, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    memcpy(map, "mapped", 6);
    look("d/one");
}

#ifdef __NR_truncate
OPERATION(truncate_call) { step("truncate", sys(truncate, "file", 100)); look("file"); }
#endif
OPERATION(truncate_wide) { step("truncate", wide(truncate, "file", LONG64(100))); look("file"); }
OPERATION(truncate_longer) { step("truncate", wide(truncate, "file", LONG64(1 << 20))); look("file"); }
OPERATION(truncate_beyond_4g)
{
    step("truncate", wide(truncate, "sparse", LONG64(5LL << 30)));
    step("again", wide(truncate, "sparse", LONG64(10)));
    look("sparse");
}
OPERATION(truncate_same) { step("truncate", wide(truncate, "file", LONG64(600))); look("file"); }
OPERATION(truncate_symlink) { step("truncate", wide(truncate, "d/up", LONG64(1))); look("file"); }
OPERATION(truncate_setid) { step("truncate", wide(truncate, "setid", LONG64(1))); look("setid"); }
OPERATION(truncate_wrongly)
{
    step("negative", wide(truncate, "file", LONG64(-1)));
    step("directory", wide(truncate, "d", LONG64(0)));
    step("fifo", wide(truncate, "fifo", LONG64(0)));
    step("missing", wide(truncate, "missing", LONG64(0)));
    step("slash", wide(truncate, "file/", LONG64(0)));
    step("loop", wide(truncate, "loop", LONG64(0)));
    step("nothing", wide(truncate, "", LONG64(0)));
    step("nowhere", wide(truncate, (char *)1, LONG64(0)));
}

OPERATION(ftruncate_writer)
{
    int fd = opened("open", open("file", O_WRONLY));
    step("shorter", wide(ftruncate, fd, LONG64(50)));
    step("longer", wide(ftruncate, fd, LONG64(5000)));
    agree(fd, "file");
    look("file");
}
HARMLESS(ftruncate_reader)
{
    step("ftruncate", wide(ftruncate, reader("file", 0, 0), LONG64(50)));
    step("write", write(reader("file", 0, 0), "x", 1));
    step("closed", wide(ftruncate, 99, LONG64(50)));
    look("file");
}

static void allocated(int mode, off_t offset, off_t size)
{
    int fd = opened("open", open("d/one", O_RDWR));
    step("fallocate", sys(fallocate, fd, mode, LONG64(offset), LONG64(size)));
    look("d/one");
}
OPERATION(allocate) { allocated(0, 0, 100000); }
OPERATION(allocate_keeping_size) { allocated(FALLOC_FL_KEEP_SIZE, 0, 100000); }
OPERATION(punch_hole) { allocated(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 100, 500); }
OPERATION(zero_range) { allocated(FALLOC_FL_ZERO_RANGE, 100, 500); }
OPERATION(collapse_range) { allocated(FALLOC_FL_COLLAPSE_RANGE, 0, 4096); }
HARMLESS(allocate_reader)
{
    step("fallocate", sys(fallocate, reader("file", 0, 0), 0, LONG64(0), LONG64(5000)));
}

OPERATION(copy_range_into)
{
    int from = reader("other", 0, 100), into = opened("open", open("file", O_WRONLY));
    count("copy_file_range", sys(copy_file_range, from, NULL, into, NULL, (size_t)1000, 0));
    look("file");
}
OPERATION(clone_into)
{
    int from = reader("sparse", 0, 0), into = opened("open", open("file", O_WRONLY));
    step("clone", ioctl(into, FICLONE, from));
    look("file");
}
HARMLESS(copy_range_into_reader)
{
    int from = reader("other", 0, 100), into = reader("file", 0, 0);
    count("copy_file_range", sys(copy_file_range, from, NULL, into, NULL, (size_t)1000, 0));
    count("sendfile", sendfile(into, from, NULL, 1000));
}
OPERATION(splice_into)
{
    int ends[2], into = opened("open", open("file", O_WRONLY));
    loff_t offset = 10;
    if (pipe(ends) || write(ends[1], "through a pipe", 14) != 14)
        die("pipe");
    count("splice", sys(splice, ends[0], NULL, into, &offset, (size_t)14, 0));
    look("file");
}
OPERATION(sendfile_into)
{
    int from = reader("other", 0, 100), into = opened("open", open("file", O_WRONLY));
    count("sendfile", sendfile(into, from, NULL, 1000));
    look("file");
}
OPERATION(write_vector)
{
    struct iovec parts[] = {{"one ", 4}, {"two", 3}};
    int fd = opened("open", open("file", O_WRONLY));
    count("pwritev2", pwritev2(fd, parts, 2, 20, RWF_SYNC));
    count("appended", pwritev2(fd, parts, 2, -1, RWF_APPEND));
    look("file");
}

OPERATION(nameless)
{
    int fd = opened("tmpfile", open(".", O_TMPFILE | O_RDWR, 0600));
    char path[64];
    count("write", write(fd, "nameless\n", 9));
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    step("over something", linkat(AT_FDCWD, path, AT_FDCWD, "file", AT_SYMLINK_FOLLOW));
    step("over nothing", linkat(AT_FDCWD, path, AT_FDCWD, "d/new", AT_SYMLINK_FOLLOW));
    step("by descriptor", linkat(fd, "", AT_FDCWD, "void/new", AT_EMPTY_PATH));
    look("file");
    look("d/new");
}

/* Hard links. */

OPERATION(pair_append)
{
    written("pair", O_WRONLY | O_APPEND);
    look("d/pair");
}
OPERATION(pair_append_other)
{
    int fd = reader("pair", 0, 0);
    written("d/pair", O_WRONLY | O_APPEND);
    look("pair");
    agree(fd, "pair");
}
OPERATION(pair_both)
{
    int first = opened("first", open("pair", O_RDWR)), second = opened("second", open("d/pair", O_RDWR | O_APPEND));
    count("write", write(first, "CHANGED", 7));
    count("write", write(second, "appended\n", 9));
    read_on(second);
    look("pair");
    look("d/pair");
    agree(first, "d/pair");
    agree(second, "pair");
}
OPERATION(pair_truncate)
{
    step("truncate", wide(truncate, "pair", LONG64(100)));
    look("d/pair");
}
OPERATION(linked_then_written)
{
    step("link", link("file", "d/linked"));
    step("link", link("d/linked", "void/linked"));
    written("d/linked", O_WRONLY | O_APPEND);
    look("file");
    look("void/linked");
}
OPERATION(linked_then_first_written)
{
    step("link", link("file", "d/linked"));
    written("file", O_WRONLY | O_TRUNC);
    look("d/linked");
}
OPERATION(linked_renamed_written)
{
    step("link", link("file", "linked"));
    step("rename", rename("linked", "d/renamed"));
    step("rename", rename("d", "e"));
    written("file", O_WRONLY);
    look("e/renamed");
    written("e/renamed", O_WRONLY | O_APPEND);
    look("file");
}
OPERATION(written_then_linked)
{
    written("file", O_WRONLY);
    step("link", link("file", "linked"));
    written("linked", O_WRONLY | O_APPEND);
    look("file");
}
OPERATION(linked_unlinked_written)
{
    step("link", link("file", "linked"));
    step("unlink", unlink("file"));
    written("linked", O_WRONLY | O_APPEND);
    look("file");
}
OPERATION(link_exchanged_written)
{
    step("link", link("file", "linked"));
    step("exchange", sys(renameat2, AT_FDCWD, "linked", AT_FDCWD, "own", RENAME_EXCHANGE));
    written("own", O_WRONLY | O_APPEND);
    look("file");
    look("linked");
}

/* A file that was opened for reading, and is then changed by its name. */

static void seen_by_reader(int flags)
{
    int fd = reader("file", 0, 0), copy = dup(fd);
    written("file", flags);
    read_on(fd);
    agree(fd, "file");
    read_on(copy);
    agree(copy, "file");
}
OPERATION(reader_sees_write) { seen_by_reader(O_WRONLY); }
OPERATION(reader_sees_truncate) { seen_by_reader(O_WRONLY | O_TRUNC); }
OPERATION(reader_sees_append) { seen_by_reader(O_WRONLY | O_APPEND); }
OPERATION(reader_of_child_sees_write)
{
    int fd = reader("file", 0, 0);
    IN_CHILD written("file", O_WRONLY);
    read_on(fd);
    agree(fd, "file");
}
OPERATION(reader_from_before_fork)
{
    int fd = reader("file", 0, 0), ends[2];
    if (pipe(ends))
        die("pipe");
    fflush(stdout);
    if (!fork()) {
        char byte;
        close(ends[1]);
        if (read(ends[0], &byte, 1) != 1)
            _exit(1);
        agree(fd, "file");
        end_child();
    }
    written("file", O_WRONLY);
    if (write(ends[1], "x", 1) != 1)
        die("pipe");
    wait(NULL);
    read_on(fd);
}
OPERATION(path_descriptor_sees_write)
{
    int fd = open("file", O_PATH);
    written("file", O_WRONLY);
    agree(fd, "file");
}
OPERATION(mapping_sees_write)
{
    int fd = reader("file", 0, 0);
    const char *map = mmap(NULL, 600, PROT_READ, MAP_SHARED, fd, 0);
    written("file", O_WRONLY);
    note("mapped: %.7s", map);
}
OPERATION(inode_number_kept)
{
    struct stat before, after;
    int fd;
    if (stat("file", &before))
        die("file");
    fd = open("file", O_WRONLY);
    if (fstat(fd, &after))
        die("file");
    note("%s", before.st_ino == after.st_ino ? "the same inode" : "another inode");
}
OPERATION(passed_descriptor)
{
    int sockets[2], fd = -1;
    char byte = 'x', space[CMSG_SPACE(sizeof fd)];
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, sockets))
        die("sockets");
    IN_CHILD {
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        fd = reader("file", 0, 10);
        *header = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
        count("send", sendmsg(sockets[0], &message, 0));
    }
    message.msg_controllen = sizeof space;
    count("receive", recvmsg(sockets[1], &message, 0));
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    step("fchmod", fchmod(fd, 0600));
    read_on(fd);
    agree(fd, "file");
}

/* openat2 */

static void resolved(const char *what, int dir, const char *path, uint64_t flags, uint64_t resolve, const char *seen)
{
    struct open_how how = {.flags = flags, .mode = flags & O_CREAT ? 0600 : 0, .resolve = resolve};
    long fd = sys(openat2, dir, path, &how, sizeof how);
    /* What is not cached; or ".." while anybody renames something, anywhere: openat2(2). */
    for (int tries = 0; fd < 0 && errno == EAGAIN && tries < 100; tries++) {
        how.resolve &= ~(uint64_t)RESOLVE_CACHED;
        fd = sys(openat2, dir, path, &how, sizeof how);
    }
    write_and_close(opened(what, fd));
    if (seen)
        look(seen);
}

OPERATION(openat2_plain) { resolved("plain", AT_FDCWD, "file", O_WRONLY, 0, "file"); }
OPERATION(openat2_truncate) { resolved("truncate", AT_FDCWD, "file", O_RDONLY | O_TRUNC, 0, "file"); }
OPERATION(openat2_create)
{
    resolved("create", AT_FDCWD, "file", O_RDWR | O_CREAT, 0, "file");
    resolved("exclusively", AT_FDCWD, "other", O_RDWR | O_CREAT | O_EXCL, 0, "other");
}
OPERATION(openat2_no_xdev)
{
    resolved("file", AT_FDCWD, "file", O_WRONLY, RESOLVE_NO_XDEV, "file");
    resolved("elsewhere", AT_FDCWD, "magic", O_WRONLY, RESOLVE_NO_XDEV, NULL);
    resolved("device", AT_FDCWD, "/proc/self/cwd/d/one", O_WRONLY, RESOLVE_NO_XDEV, "d/one");
}
OPERATION(openat2_no_magic_links)
{
    resolved("magic", AT_FDCWD, "magic", O_WRONLY, RESOLVE_NO_MAGICLINKS, "file");
    resolved("symlink", AT_FDCWD, "link", O_WRONLY, RESOLVE_NO_MAGICLINKS, "file");
}
OPERATION(openat2_no_symlinks)
{
    resolved("symlink", AT_FDCWD, "link", O_WRONLY, RESOLVE_NO_SYMLINKS, "file");
    resolved("directory", AT_FDCWD, "dirlink/one", O_WRONLY, RESOLVE_NO_SYMLINKS, "d/one");
    resolved("file", AT_FDCWD, "d/one", O_WRONLY, RESOLVE_NO_SYMLINKS, "d/one");
}
OPERATION(openat2_beneath)
{
    int d = open("d", O_RDONLY | O_DIRECTORY);
    resolved("up", d, "up", O_WRONLY, RESOLVE_BENEATH, "file");
    resolved("parent", d, "../file", O_WRONLY, RESOLVE_BENEATH, "file");
    resolved("absolute", AT_FDCWD, "absolute", O_WRONLY, RESOLVE_BENEATH, "file");
    resolved("below", d, "deep/../one", O_WRONLY, RESOLVE_BENEATH, "d/one");
}
OPERATION(openat2_in_root)
{
    int here = open(".", O_RDONLY | O_DIRECTORY), d = open("d", O_PATH | O_DIRECTORY);
    resolved("rooted", here, "rooted", O_WRONLY, RESOLVE_IN_ROOT, "d/one");
    resolved("absolute", here, "/d/two", O_RDWR, RESOLVE_IN_ROOT, "d/two");
    resolved("parents", d, "../../../deep/three", O_WRONLY | O_APPEND, RESOLVE_IN_ROOT, "d/deep/three");
    resolved("up", d, "up", O_WRONLY, RESOLVE_IN_ROOT, "file");
}
OPERATION(openat2_cached)
{
    resolved("file", AT_FDCWD, "file", O_WRONLY, RESOLVE_CACHED, "file");
    resolved("others", AT_FDCWD, "d/deep/three", O_RDWR, RESOLVE_CACHED | RESOLVE_NO_SYMLINKS, "d/deep/three");
}
HARMLESS(openat2_wrongly)
{
    struct {
        struct open_how how;
        uint64_t more;
    } longer = {.how.flags = O_WRONLY, .more = 1};
    resolved("flags", AT_FDCWD, "file", O_WRONLY | 1ULL << 40, 0, NULL);
    resolved("resolve", AT_FDCWD, "file", O_WRONLY, 1 << 20, NULL);
    resolved("both", AT_FDCWD, "file", O_WRONLY, RESOLVE_BENEATH | RESOLVE_IN_ROOT, NULL);
    step("small", sys(openat2, AT_FDCWD, "file", &longer, (size_t)8));
    step("too new", sys(openat2, AT_FDCWD, "file", &longer, sizeof longer));
    step("huge", sys(openat2, AT_FDCWD, "file", &longer, (size_t)1 << 20));
    step("nowhere", sys(openat2, AT_FDCWD, "file", NULL, sizeof longer.how));
    longer.how.mode = 0600;
    step("mode", sys(openat2, AT_FDCWD, "file", &longer, sizeof longer.how));
}
OPERATION(openat2_longer)
{
    struct {
        struct open_how how;
        uint64_t more[4];
    } longer = {.how.flags = O_WRONLY | O_APPEND};
    write_and_close(opened("longer", sys(openat2, AT_FDCWD, "file", &longer, sizeof longer)));
    look("file");
}

OPERATION(open_by_handle)
{
    struct {
        struct file_handle handle;
        char bytes[MAX_HANDLE_SZ];
    } handle = {.handle.handle_bytes = MAX_HANDLE_SZ};
    int mount, here = open(".", O_RDONLY | O_DIRECTORY);
    step("handle", name_to_handle_at(AT_FDCWD, "file", &handle.handle, &mount, 0));
    write_and_close(opened("open", open_by_handle_at(here, &handle.handle, O_WRONLY)));
    look("file");
}

/* With fast rings a program could open without a system call: refused, or as on private files. */
HARMLESS(io_uring)
{
    char parameters[256] = {0};
    long fd = syscall(425, 4, parameters);
    note("io_uring_setup: %s", fd >= 0 || errno == ENOSYS ? "as it may be" : error_name(errno));
}
