/* What a hostile guest tries. Each attack says what the kernel answered to its decisive step; whether the inode is the
 * same afterwards is for the caller to see. */
#include "guard.h"

#include <linux/aio_abi.h>
#include <linux/fsverity.h>
#include <sys/sendfile.h>

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

/* The second half of an exchange that depends on the file being as it was. */
OPERATION(ATTACK, xfs_commit_range)
{
    struct {
        int32_t file1;
        uint32_t padding;
        uint64_t offset1, offset2, length, flags, freshness[6];
    } commit = {other(), 0, 0, 0, SIZE, 0, {0}};
    int fd = reader();
    return ioctl(fd, _IOR('X', 130, commit), &commit) ? -1 : ioctl(fd, _IOW('X', 131, commit), &commit);
}

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
    struct encoded encoded = {&vector, 1, 0, 0, 4096, 4096, 0, 1, 0, ""};
    return ioctl(reader(), ENCODED_WRITE, &encoded);
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
OPERATION(ATTACK, release_blocks)
{
    struct {
        int16_t type, whence;
        int64_t start, length;
        int32_t system, process;
        int32_t unused[4];
    } space = {0, SEEK_SET, 0, 4096, 0, 0, {0}};
    return ioctl(reader(), _IOW('X', 43, space), &space);
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

/* An inode whose name is gone, and comes back while it is open for writing. */
OPERATION(ATTACK, link_again)
{
    int fd = opened(O_RDWR), second;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", reader());
    if (linkat(AT_FDCWD, path, AT_FDCWD, "again", AT_SYMLINK_FOLLOW)
        && linkat(reader(), "", AT_FDCWD, "again", AT_EMPTY_PATH))
        return -1;
    second = open("again", O_RDWR);
    if (fd < 0)
        fd = second;
    return fd < 0 ? -1 : write(fd, "changed", 7);
}
