/* What a hostile guest tries. Each attack says what the kernel answered to its decisive step; whether the inode is the
 * same afterwards is for the caller to see. */
#include "guard.h"

#include <linux/aio_abi.h>
#include <linux/fsverity.h>
#include <linux/io_uring.h>
#include <linux/loop.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/swap.h>
#include <sys/uio.h>

/* Tells what an attack found about something else than `file`, as a line of its own. */
static void found(const char *name, bool changed)
{
    printf("%s attack ok %s\n", name, changed ? "changed" : "same");
    fflush(stdout);
}

/* Ioctls. */

static long with_number(unsigned long command, int number) { return ioctl(reader(), command, &number); }

struct move_extent {
    uint32_t reserved, donor;
    uint64_t from, to, length, moved;
};
static long move_extents(int fd, int donor)
{
    struct move_extent move = {0, donor, 0, 0, SIZE / 4096, 0};
    return ioctl(fd, _IOWR('f', 15, struct move_extent), &move);
}
OPERATION(ATTACK, ext4_move_extents) { return move_extents(reader(), other()); }
OPERATION(ATTACK, ext4_move_extents_as_donor) { return move_extents(other(), reader()); }
OPERATION(ATTACK, ext4_swap_boot) { return ioctl(reader(), _IO('f', 17)); }
OPERATION(ATTACK, ext4_migrate) { return ioctl(reader(), _IO('f', 9)); }
OPERATION(ATTACK, ext4_allocate) { return ioctl(reader(), _IO('f', 12)); }
OPERATION(ATTACK, ext4_set_version) { return with_number(_IOW('f', 4, long), 5); }
OPERATION(ATTACK, ext4_set_reservation) { return with_number(_IOW('f', 6, long), 5); }
OPERATION(ATTACK, set_version) { return with_number(_IOW('v', 2, long), 5); }
/* With another UUID the filesystem would not be guarded after its next mount. */
OPERATION(ATTACK, ext4_set_filesystem_uuid)
{
    struct {
        uint32_t size, flags;
        unsigned char uuid[16];
    } uuid = {16, 0, "another one"};
    return ioctl(open(".", O_RDONLY), _IOC(_IOC_WRITE, 'f', 44, 8), &uuid);
}
OPERATION(ATTACK, set_project)
{
    struct fsxattr more;
    if (ioctl(reader(), FS_IOC_FSGETXATTR, &more))
        return -1;
    more.fsx_projid = 7;
    return ioctl(reader(), FS_IOC_FSSETXATTR, &more);
}
OPERATION(ATTACK, set_extent_size)
{
    struct fsxattr more;
    if (ioctl(reader(), FS_IOC_FSGETXATTR, &more))
        return -1;
    more.fsx_extsize = 65536;
    more.fsx_xflags |= FS_XFLAG_EXTSIZE;
    return ioctl(reader(), FS_IOC_FSSETXATTR, &more);
}
OPERATION(ATTACK, enable_verity)
{
    struct fsverity_enable_arg verity = {.version = 1, .hash_algorithm = 1, .block_size = 4096};
    return ioctl(reader(), FS_IOC_ENABLE_VERITY, &verity);
}
OPERATION(ATTACK, set_encryption)
{
    char policy[12] = {0, 1, 4, 3};
    return ioctl(reader(), FS_IOC_SET_ENCRYPTION_POLICY, policy);
}

struct swap_extents {
    int64_t version, target, temporary, offset, length;
    char reserved[16];
    char status[256];
};
static long xfs_swap(int target, int temporary)
{
    struct swap_extents swap = {0, target, temporary, 0, SIZE, "", ""};
    return ioctl(other(), _IOC(_IOC_READ | _IOC_WRITE, 'X', 109, 192), &swap);
}
OPERATION(ATTACK, xfs_swap_extents) { return xfs_swap(reader(), other()); }
OPERATION(ATTACK, xfs_swap_extents_as_source) { return xfs_swap(other(), reader()); }
struct exchange_range {
    int32_t file1;
    uint32_t padding;
    uint64_t offset1, offset2, length, flags;
};
static long xfs_exchange(int one, int two)
{
    struct exchange_range exchange = {one, 0, 0, 0, SIZE, 0};
    return ioctl(two, _IOW('X', 129, struct exchange_range), &exchange);
}
OPERATION(ATTACK, xfs_exchange_range) { return xfs_exchange(reader(), other()); }
OPERATION(ATTACK, xfs_exchange_range_as_source) { return xfs_exchange(other(), reader()); }

struct handle_request {
    uint32_t fd;
    void *path;
    uint32_t open_flags;
    void *handle;
    uint32_t size;
    void *out;
    uint32_t *out_size;
};
static long xfs_handle(void *handle, uint32_t *size)
{
    struct handle_request request = {reader(), NULL, O_RDWR, NULL, 0, handle, size};
    return ioctl(reader(), _IOWR('X', 106, struct handle_request), &request);
}
OPERATION(ATTACK, xfs_open_by_handle)
{
    char handle[64];
    uint32_t size = sizeof handle;
    struct handle_request request = {0, NULL, O_RDWR, handle, 0, NULL, NULL};
    int fd;
    if (xfs_handle(handle, &size))
        return -1;
    request.size = size;
    fd = ioctl(open(".", O_RDONLY), _IOWR('X', 107, struct handle_request), &request);
    return fd < 0 ? -1 : write(fd, "changed", 7);
}
static long xfs_attribute_by_handle(int through, uint32_t operation)
{
    struct {
        uint32_t operation;
        int32_t error;
        char *name;
        void *value;
        uint32_t size, flags;
    } attribute = {operation, 0, "one", "changed", 7, 0};
    char handle[64];
    uint32_t size = sizeof handle;
    struct {
        struct handle_request handle;
        uint32_t count;
        void *operations;
    } request = {{0, NULL, 0, handle, 0, NULL, NULL}, 1, &attribute};
    if (xfs_handle(handle, &size))
        return -1;
    request.handle.size = size;
    if (ioctl(through, _IOW('X', 123, request), &request))
        return -1;
    errno = -attribute.error;
    return attribute.error ? -1 : 0;
}
OPERATION(ATTACK, xfs_set_attribute_by_handle) { return xfs_attribute_by_handle(other(), 2); }
OPERATION(ATTACK, xfs_set_attribute_by_handle_of_directory)
{
    return xfs_attribute_by_handle(open(".", O_RDONLY), 2);
}
OPERATION(ATTACK, xfs_remove_attribute_by_handle) { return xfs_attribute_by_handle(other(), 3); }

OPERATION(ATTACK, btrfs_defragment) { return ioctl(reader(), _IOC(_IOC_WRITE, 0x94, 2, 4096), NULL); }
OPERATION(ATTACK, btrfs_compress)
{
    struct {
        uint64_t start, length, flags;
        uint32_t threshold, compression, unused[4];
    } range = {0, SIZE, 3, 0, 1, {0}};
    return ioctl(reader(), _IOW(0x94, 16, range), &range);
}
OPERATION(ATTACK, btrfs_encoded_write)
{
    char content[4096] = "changed";
    struct iovec vector = {content, sizeof content};
    struct {
        const struct iovec *vectors;
        unsigned long count;
        int64_t offset;
        uint64_t flags, length, unencoded_length, unencoded_offset;
        uint32_t compression, encryption;
        char reserved[64];
    } encoded = {&vector, 1, 0, 0, 4096, 4096, 0, 1, 0, ""};
    return ioctl(reader(), _IOC(_IOC_WRITE, 0x94, 64, sizeof encoded), &encoded);
}
/* The snapshot's inode is another; but the flags and the content came from this one. */
OPERATION(ATTACK, btrfs_snapshot)
{
    struct {
        int64_t fd;
        uint64_t transaction, flags, unused[4];
        char name[4040];
    } snapshot = {.fd = open("/", O_RDONLY), .name = "snapshot"};
    char path[PATH_MAX + 32], here[PATH_MAX];
    int fd;
    if (ioctl(open(".", O_RDONLY), _IOW(0x94, 23, snapshot), &snapshot))
        return -1;
    if (!getcwd(here, sizeof here))
        return -1;
    snprintf(path, sizeof path, "snapshot%s/file", here);
    fd = open(path, O_WRONLY);
    return fd < 0 ? -1 : write(fd, "changed", 7);
}
OPERATION(ATTACK, btrfs_subvolume_flags)
{
    uint64_t flags = 0;
    return ioctl(reader(), _IOW(0x94, 26, uint64_t), &flags);
}

/* Shared blocks. */

OPERATION(ATTACK, clone_file) { return ioctl(reader(), FICLONE, other()); }
OPERATION(ATTACK, clone_range)
{
    struct file_clone_range range = {other(), 0, 4096, 0};
    return ioctl(reader(), FICLONERANGE, &range);
}
static long dedupe(const char *source)
{
    struct {
        struct file_dedupe_range range;
        struct file_dedupe_range_info info;
    } request = {{0, SIZE, 1, 0, 0}, {reader(), 0, 0, 0, 0}};
    if (ioctl(open(source, O_RDONLY), FIDEDUPERANGE, &request))
        return -1;
    errno = request.info.status < 0 ? -request.info.status : EILSEQ;
    return request.info.status == FILE_DEDUPE_RANGE_SAME ? 0 : -1;
}
OPERATION(ATTACK, dedupe_other_content) { return dedupe("other"); }
/* The kernel may give it the blocks of the copy, which have the same content; a write to the copy then must not show. */
OPERATION(ATTACK, dedupe_equal_content_and_write)
{
    int fd = open("copy", O_RDWR | O_CREAT, 0644);
    char content[SIZE];
    long result;
    if (pread(reader(), content, SIZE, 0) != SIZE || write(fd, content, SIZE) != SIZE || fsync(fd))
        return -1;
    result = dedupe("copy");
    if (pwrite(fd, "changed", 7, 0) != 7 || fsync(fd))
        return -1;
    return result;
}
OPERATION(ATTACK, copy_range) { return copy_file_range(other(), NULL, reader(), NULL, 4096, 0); }
OPERATION(ATTACK, send_file) { return sendfile(reader(), other(), NULL, 4096); }

/* Descriptors that were opened for reading. */

OPERATION(ATTACK, allocate) { return fallocate(reader(), 0, 0, 1 << 20); }
OPERATION(ATTACK, punch_hole) { return fallocate(reader(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096); }
OPERATION(ATTACK, truncate_descriptor) { return ftruncate(reader(), 0); }
OPERATION(ATTACK, write_by_aio)
{
    struct iocb block = {.aio_fildes = reader(), .aio_lio_opcode = IOCB_CMD_PWRITE, .aio_buf = (uintptr_t)"changed",
                         .aio_nbytes = 7};
    struct iocb *blocks = &block;
    aio_context_t context = 0;
    return sys(io_setup, 1, &context) ? -1 : sys(io_submit, context, 1, &blocks) - 1;
}
/* A page of the file in a pipe, then a write to the pipe. */
OPERATION(ATTACK, write_to_spliced_page)
{
    int ends[2];
    char buffer[65536];
    if (pipe(ends))
        return -1;
    for (int i = 0; i < 16; i++)
        if (write(ends[1], buffer, 4096) != 4096)
            return -1;
    if (read(ends[0], buffer, sizeof buffer) != sizeof buffer
        || splice(reader(), NULL, ends[1], NULL, 1, 0) != 1 || write(ends[1], "changed", 7) != 7)
        return -1;
    return 0;
}

/* Mappings. */

static char *mapped(int sharing)
{
    char *at = mmap(NULL, 4096, PROT_READ, sharing, reader(), 0);
    if (at == MAP_FAILED)
        die("mmap");
    return *(volatile char *)at == 'f' ? at : NULL;
}
OPERATION(ATTACK, protect_mapping) { return mprotect(mapped(MAP_SHARED), 4096, PROT_READ | PROT_WRITE); }
OPERATION(ATTACK, map_writable) { return mmap(NULL, 1, PROT_WRITE, MAP_SHARED, reader(), 0) == MAP_FAILED ? -1 : 0; }
static long by_memory_file(int sharing)
{
    char *at = mapped(sharing);
    return pwrite(open("/proc/self/mem", O_RDWR), "changed", 7, (off_t)(uintptr_t)at) < 0 ? -1 : 0;
}
OPERATION(ATTACK, memory_file_shared) { return by_memory_file(MAP_SHARED); }
OPERATION(ATTACK, memory_file_private) { return by_memory_file(MAP_PRIVATE); }
OPERATION(ATTACK, write_to_other_process)
{
    char *at = mapped(MAP_SHARED);
    struct iovec from = {"changed", 7}, to = {at, 7};
    pid_t child = fork();
    long result;
    if (!child)
        pause();
    result = process_vm_writev(child, &from, 1, &to, 1, 0);
    kill(child, SIGKILL);
    return result < 0 ? -1 : 0;
}
static long poke(int sharing)
{
    char *at = mapped(sharing);
    pid_t child = fork();
    long result;
    if (!child) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
    }
    if (waitpid(child, NULL, 0) != child)
        return -1;
    result = ptrace(PTRACE_POKEDATA, child, at, 0x12345678);
    kill(child, SIGKILL);
    return result;
}
OPERATION(ATTACK, poke_shared) { return poke(MAP_SHARED); }
OPERATION(ATTACK, poke_private) { return poke(MAP_PRIVATE); }
OPERATION(ATTACK, read_into_mapping) { char *at = mapped(MAP_SHARED); return read(other(), at, 7) < 0 ? -1 : 0; }

/* io_uring: one request; its result. */

static long ring(struct io_uring_sqe request)
{
    struct io_uring_params parameters = {0};
    int fd = sys(io_uring_setup, 2, &parameters);
    size_t size = parameters.sq_off.array + 8 + parameters.cq_off.cqes + 64 * sizeof(struct io_uring_cqe);
    char *submit, *complete;
    struct io_uring_sqe *requests;
    long result;
    if (fd < 0)
        return -1;
    submit = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQ_RING);
    complete = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_CQ_RING);
    requests = mmap(NULL, 2 * sizeof *requests, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQES);
    if (submit == MAP_FAILED || complete == MAP_FAILED || requests == MAP_FAILED)
        return -1;
    *requests = request;
    *(uint32_t *)(submit + parameters.sq_off.array) = 0;
    __atomic_store_n((uint32_t *)(submit + parameters.sq_off.tail), 1, __ATOMIC_RELEASE);
    if (sys(io_uring_enter, fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
        return -1;
    result = ((struct io_uring_cqe *)(complete + parameters.cq_off.cqes))->res;
    if (result < 0)
        errno = -result;
    return result < 0 ? -1 : result;
}
#define ADDRESS(of) (uintptr_t)(of)
static long ring_open(unsigned char flags)
{
    struct io_uring_sqe request = {.opcode = IORING_OP_OPENAT, .flags = flags, .fd = AT_FDCWD, .addr = ADDRESS("file"),
                                   .open_flags = O_WRONLY};
    long fd = ring(request);
    return fd < 0 ? -1 : write(fd, "changed", 7);
}
OPERATION(ATTACK, ring_open_call) { return ring_open(0); }
OPERATION(ATTACK, ring_open_by_worker) { return ring_open(IOSQE_ASYNC); }
OPERATION(ATTACK, ring_write)
{
    struct io_uring_sqe request = {.opcode = IORING_OP_WRITE, .fd = reader(), .addr = ADDRESS("changed"), .len = 7};
    return ring(request);
}
OPERATION(ATTACK, ring_allocate)
{
    struct io_uring_sqe request = {.opcode = IORING_OP_FALLOCATE, .fd = reader(), .addr = 1 << 20};
    return ring(request);
}
OPERATION(ATTACK, ring_set_attribute)
{
    struct io_uring_sqe request = {.opcode = IORING_OP_SETXATTR, .addr = ADDRESS("user.two"), .addr2 = ADDRESS("2"),
                                   .len = 1, .addr3 = ADDRESS("file")};
    return ring(request);
}
OPERATION(ATTACK, ring_set_attribute_by_worker)
{
    struct io_uring_sqe request = {.opcode = IORING_OP_FSETXATTR, .flags = IOSQE_ASYNC, .fd = reader(),
                                   .addr = ADDRESS("user.two"), .addr2 = ADDRESS("2"), .len = 1};
    return ring(request);
}
OPERATION(ATTACK, ring_truncate)
{
    struct io_uring_sqe request = {.opcode = 55, .fd = reader(), .off = 1};
    return ring(request);
}

/* Other names of the inode. */

OPERATION(ATTACK, open_by_handle)
{
    struct {
        struct file_handle handle;
        char room[128];
    } handle = {.handle.handle_bytes = 128};
    int mount, fd;
    if (name_to_handle_at(AT_FDCWD, "file", &handle.handle, &mount, 0))
        return -1;
    fd = open_by_handle_at(open(".", O_RDONLY), &handle.handle, O_RDWR);
    return fd < 0 ? -1 : write(fd, "changed", 7);
}
OPERATION(ATTACK, nameless_over)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", open(".", O_TMPFILE | O_RDWR, 0644));
    return linkat(AT_FDCWD, path, AT_FDCWD, "file", AT_SYMLINK_FOLLOW);
}
OPERATION(ATTACK, bind_mount)
{
    int fd;
    if (mount("file", "other", NULL, MS_BIND, NULL) || mount(NULL, "other", NULL, MS_BIND | MS_REMOUNT, NULL))
        return -1;
    fd = open("other", O_WRONLY);
    return fd < 0 ? -1 : write(fd, "changed", 7);
}
OPERATION(ATTACK, tree_with_shifted_ids)
{
    struct {
        uint64_t set, clear, propagation, userns;
    } attributes = {0x100000, 0, 0, 0};
    int tree = sys(open_tree, AT_FDCWD, ".", 1), ends[2], fd;
    pid_t child;
    char byte, path[64];
    if (tree < 0 || pipe(ends))
        return -1;
    child = fork();
    if (!child) {
        byte = unshare(CLONE_NEWUSER) != 0;
        if (write(ends[1], &byte, 1) == 1)
            pause();
        _exit(0);
    }
    if (read(ends[0], &byte, 1) != 1)
        return -1;
    snprintf(path, sizeof path, "/proc/%d/uid_map", child);
    fd = open(path, O_WRONLY);
    if (write(fd, "0 0 65536", 9) != 9)
        return -1;
    snprintf(path, sizeof path, "/proc/%d/gid_map", child);
    fd = open(path, O_WRONLY);
    if (write(fd, "0 0 65536", 9) != 9)
        return -1;
    snprintf(path, sizeof path, "/proc/%d/ns/user", child);
    attributes.userns = open(path, O_RDONLY);
    if (sys(mount_setattr, tree, "", AT_EMPTY_PATH, &attributes, sizeof attributes))
        return -1;
    kill(child, SIGKILL);
    fd = openat(tree, "file", O_WRONLY);
    return fd < 0 ? fchmodat(tree, "file", 0600, 0) : write(fd, "changed", 7);
}

/* overlayfs, with the inode below and above. */

static bool overlaid(const char *lower)
{
    char options[256];
    snprintf(options, sizeof options, "lowerdir=%s,upperdir=upper,workdir=work,metacopy=on", lower);
    mkdir("upper", 0755);
    mkdir("work", 0755);
    mkdir("lower", 0755);
    if (!mount("overlay", "void", "overlay", 0, options))
        return true;
    options[strlen(options) - strlen(",metacopy=on")] = '\0';
    strcat(options, ",userxattr");
    return !mount("overlay", "void", "overlay", 0, options);
}
/* Everything, whatever comes of it, and a write at last. Flags first: without the mark, all else would be possible. */
static long change_all(const char *path)
{
    struct fsxattr more;
    int fd = open(path, O_RDONLY), flags;
    if (!ioctl(fd, FS_IOC_GETFLAGS, &flags)) {
        flags &= ~FS_NOATIME_FL;
        ioctl(fd, FS_IOC_SETFLAGS, &flags);
    }
    if (!ioctl(fd, FS_IOC_FSGETXATTR, &more)) {
        more.fsx_xflags &= ~FS_XFLAG_NOATIME;
        ioctl(fd, FS_IOC_FSSETXATTR, &more);
    }
    chmod(path, 0600);
    setxattr(path, "user.two", "2", 1, 0);
    removexattr(path, "user.one");
    truncate(path, 100);
    fd = open(path, O_WRONLY);
    return fd < 0 ? -1 : write(fd, "changed", 7);
}
OPERATION(ATTACK, overlay_lower)
{
    mkdir("lower", 0755);
    if (link("file", "lower/file") || !overlaid("lower"))
        return -1;
    return change_all("void/file");
}
OPERATION(ATTACK, overlay_upper)
{
    mkdir("upper", 0755);
    if (link("file", "upper/file") || !overlaid("lower"))
        return -1;
    return change_all("void/file");
}

/* One that the host has mounted, with its own rights, at /overlay; the inode is in its upper directory, /above. */
OPERATION(ATTACK, overlay_of_host)
{
    if (access("/overlay/whole", F_OK) || link("file", "/above/file"))
        return absent();
    long result = change_all("/overlay/file");
    int error = errno;
    unlink("/overlay/file");
    errno = error;
    return result;
}

/* What the kernel itself writes to. */

static long through_loop(int fd, uint32_t flags)
{
    int control = open("/dev/loop-control", O_RDWR), number = ioctl(control, LOOP_CTL_GET_FREE), loop, writable = 0;
    struct loop_config config = {.fd = fd, .info.lo_flags = flags};
    struct loop_info64 info;
    char path[32];
    long result;
    if (control < 0 || number < 0)
        return -1;
    snprintf(path, sizeof path, "/dev/loop%d", number);
    loop = open(path, O_RDWR);
    if (loop < 0 || ioctl(loop, LOOP_CONFIGURE, &config))
        return -1;
    ioctl(loop, _IOW(0x12, 93, int), &writable); /* BLKROSET */
    if (!ioctl(loop, LOOP_GET_STATUS64, &info)) {
        info.lo_flags &= ~LO_FLAGS_READ_ONLY;
        ioctl(loop, LOOP_SET_STATUS64, &info);
    }
    result = write(open(path, O_WRONLY), "changed", 7) < 0 || fsync(loop) ? -1 : 0;
    if (result)
        result = write(loop, "changed", 7) < 0 || fsync(loop) ? -1 : 0;
    int error = errno;
    ioctl(loop, LOOP_CLR_FD, 0);
    errno = error;
    return result;
}
OPERATION(ATTACK, loop_device) { return through_loop(reader(), 0); }
OPERATION(ATTACK, loop_device_direct) { return through_loop(reader(), LO_FLAGS_DIRECT_IO); }
OPERATION(ATTACK, swap_file) { return swapon("file", 0); }
OPERATION(ATTACK, accounting)
{
    long result = acct("file");
    if (!result) {
        if (!fork())
            _exit(0);
        wait(NULL);
        acct(NULL);
    }
    return result;
}
OPERATION(ATTACK, core_dump)
{
    const struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY};
    int status;
    pid_t child;
    if (link("file", "core") || setrlimit(RLIMIT_CORE, &all))
        return -1;
    child = fork();
    if (!child)
        abort();
    if (waitpid(child, &status, 0) != child)
        return -1;
    errno = EPERM;
    return WCOREDUMP(status) ? 0 : -1;
}

/* A file of the guest's own that becomes marked, with the content of a quota file: the kernel writes to it, and sets
 * its flags, without an open. */
OPERATION(ATTACK, quota_file)
{
    struct {
        uint32_t magic, version, block_grace, inode_grace, flags, blocks, free_block, free_entry;
        char rest[1024 * 6 - 32];
    } content = {0xd9c01f11, 1, 604800, 604800, 0, 2, 0, 0, ""};
    int fd = open("quota", O_RDWR | O_CREAT, 0644), flags, before, after;
    struct stat status;
    char now[sizeof content];
    long result;
    if (write(fd, &content, sizeof content) != sizeof content || fsync(fd) || ioctl(fd, FS_IOC_GETFLAGS, &flags))
        return -1;
    flags |= FS_NOATIME_FL;
    if (ioctl(fd, FS_IOC_SETFLAGS, &flags) || link("quota", "quota2") || stat("/", &status))
        return -1;
    ioctl(fd, FS_IOC_GETFLAGS, &before);
    close(fd);
    if (mknod("/disk", S_IFBLK | 0600, status.st_dev) && errno != EEXIST)
        return -1;
    if (mount(NULL, "/", NULL, MS_REMOUNT, "usrquota"))
        return -1;
    result = sys(quotactl, 0x80000200, "/disk", 4, "quota"); /* Q_QUOTAON of users, QFMT_VFS_V1 */
    if (!result) {
        if (chown("other", 1234, 1234))
            return -1;
        sys(quotactl, 0x80000100, "/disk", 0, NULL); /* Q_SYNC */
        sys(quotactl, 0x80000300, "/disk", 0, NULL); /* Q_QUOTAOFF */
    }
    int error = errno;
    fd = open("quota", O_RDONLY);
    if (fd < 0 || read(fd, now, sizeof now) != sizeof now || ioctl(fd, FS_IOC_GETFLAGS, &after))
        return -1;
    found("marked_quota_file", before != after || memcmp(now, &content, sizeof now));
    errno = error;
    return result;
}

/* Programs of BPF are called by what this switches. */
OPERATION(ATTACK, switch_tracing_off)
{
    int control, fd, error;
    mkdir("proc", 0755);
    if (mount("proc", "proc", "proc", 0, NULL))
        return -1;
    control = open("proc/sys/kernel/ftrace_enabled", O_WRONLY);
    if (control < 0 || write(control, "0", 1) != 1)
        return -1;
    fd = opened(O_WRONLY);
    if (fd >= 0 && write(fd, "changed", 7) < 0)
        fd = -1;
    error = errno;
    if (pwrite(control, "1", 1, 0) != 1)
        return -1;
    errno = error;
    return fd < 0 ? -1 : 0;
}

/* The guard itself: detach all links of BPF programs, and change all maps. */
OPERATION(ATTACK, detach_guard)
{
    struct {
        uint32_t id, next, flags;
        char rest[100];
    } get = {0};
    int found = 0, fd;
    while (!sys(bpf, 31, &get, sizeof get)) { /* BPF_LINK_GET_NEXT_ID */
        struct { uint32_t id, next, flags; char rest[100]; } by = {.id = get.next};
        struct { uint32_t link, program, flags, old; char rest[100]; } change = {0};
        found++;
        get.id = get.next;
        fd = sys(bpf, 30, &by, sizeof by); /* BPF_LINK_GET_FD_BY_ID */
        if (fd < 0)
            continue;
        change.link = fd;
        sys(bpf, 34, &change, sizeof change); /* BPF_LINK_DETACH */
        sys(bpf, 29, &change, sizeof change); /* BPF_LINK_UPDATE */
    }
    get.id = 0;
    while (!sys(bpf, 12, &get, sizeof get)) { /* BPF_MAP_GET_NEXT_ID */
        static char zero[65536];
        static uint32_t key;
        struct { uint32_t id, next, flags; char rest[100]; } by = {.id = get.next};
        struct { uint32_t map, padding; uint64_t key, value, flags; char rest[100]; } change = {0};
        get.id = get.next;
        fd = sys(bpf, 14, &by, sizeof by); /* BPF_MAP_GET_FD_BY_ID */
        if (fd < 0)
            continue;
        change.map = fd;
        change.key = ADDRESS(&key);
        change.value = ADDRESS(zero);
        sys(bpf, 2, &change, sizeof change); /* BPF_MAP_UPDATE_ELEM */
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    fd = opened(O_WRONLY);
    return fd < 0 ? -1 : write(fd, "changed", 7);
}
OPERATION(ATTACK, remove_pins)
{
    static const char *const places[] = {"/bpf/cow-guard", "/proc/1/root/sys/fs/bpf/cow-guard"};
    bool reached = false;
    int fd;
    mkdir("/bpf", 0755);
    mount("bpf", "/bpf", "bpf", 0, NULL);
    for (int i = 0; i < 2; i++)
        reached |= !access(places[i], F_OK);
    found("pins_in_reach", reached);
    fd = opened(O_WRONLY);
    return fd < 0 ? -1 : write(fd, "changed", 7);
}
