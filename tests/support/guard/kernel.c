/* What a hostile guest tries, continued: files that the kernel itself writes to, and the guard itself. */
#include "guard.h"

#include <linux/loop.h>
#include <linux/perf_event.h>
#include <sys/fanotify.h>
#include <sys/resource.h>
#include <sys/swap.h>

/* Tells what an attack found about something else than `file`, as a line of its own. */
static void found(const char *name, bool changed)
{
    printf("%s attack ok %s\n", name, changed ? "changed" : "same");
    fflush(stdout);
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
/* A device whose file was another one. */
OPERATION(ATTACK, loop_device_changed)
{
    int number = ioctl(open("/dev/loop-control", O_RDWR), LOOP_CTL_GET_FREE), loop, error;
    struct loop_config config = {.fd = open("other", O_RDONLY), .info.lo_flags = LO_FLAGS_READ_ONLY};
    char path[32];
    long result;
    snprintf(path, sizeof path, "/dev/loop%d", number);
    loop = open(path, O_RDWR);
    if (loop < 0 || ioctl(loop, LOOP_CONFIGURE, &config))
        return -1;
    result = ioctl(loop, LOOP_CHANGE_FD, reader());
    if (!result)
        result = write(loop, "changed", 7) < 0 || fsync(loop) ? -1 : 0;
    error = errno;
    ioctl(loop, LOOP_CLR_FD, 0);
    errno = error;
    return result;
}

/* A file of the guest's own, with this content, becomes marked. */
static bool make_marked(const char *name, const void *content, size_t size)
{
    int fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0644), flags;
    char second[64];
    snprintf(second, sizeof second, "%s.second", name);
    if (write(fd, content, size) != (ssize_t)size || fsync(fd) || ioctl(fd, FS_IOC_GETFLAGS, &flags))
        return false;
    flags |= FS_NOATIME_FL;
    return !ioctl(fd, FS_IOC_SETFLAGS, &flags) && !link(name, second) && !close(fd);
}
/* Whether it has another content or other flags than when it was made. */
static bool is_changed(const char *name, const void *content, size_t size)
{
    int fd = open(name, O_RDONLY), flags = 0;
    char *now = malloc(size);
    bool changed = read(fd, now, size) != (ssize_t)size || memcmp(now, content, size)
                   || ioctl(fd, FS_IOC_GETFLAGS, &flags) || !(flags & FS_NOATIME_FL) || flags & FS_IMMUTABLE_FL;
    free(now);
    close(fd);
    return changed;
}

OPERATION(ATTACK, swap_file)
{
    static char content[1 << 16];
    uint32_t *head = (void *)(content + 1024);
    long result;
    int error;
    head[0] = 1;                                /* version */
    head[1] = sizeof content / 4096 - 1;        /* last page */
    memcpy(content + 4086, "SWAPSPACE2", 10);
    if (!make_marked("swap", content, sizeof content))
        return -1;
    result = swapon("swap", 0);
    error = errno;
    found("marked_swap_file", !result);
    if (!result)
        swapoff("swap");
    errno = error;
    return result;
}
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
static long dump_core(void)
{
    const struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY};
    int status;
    pid_t child;
    if (setrlimit(RLIMIT_CORE, &all))
        return -1;
    child = fork();
    if (!child)
        abort();
    if (waitpid(child, &status, 0) != child)
        return -1;
    errno = EPERM;
    return WCOREDUMP(status) ? 0 : -1;
}
OPERATION(ATTACK, core_dump) { return link("file", "core") ? -1 : dump_core(); }
OPERATION(ATTACK, core_dump_by_pattern)
{
    int fd = open("/proc/sys/kernel/core_pattern", O_RDWR), error;
    char before[128];
    ssize_t size = read(fd, before, sizeof before);
    long result;
    if (size < 0 || pwrite(fd, "file", 4, 0) != 4)
        return -1;
    result = dump_core();
    error = errno;
    if (pwrite(fd, before, size, 0) != size)
        die("core_pattern");
    errno = error;
    return result;
}

/* What watches a file is given a descriptor of the kernel's. */
static long watched(unsigned kind, uint64_t events)
{
    struct fanotify_event_metadata event;
    int group = fanotify_init(kind | FAN_CLOEXEC | FAN_NONBLOCK, O_RDWR);
    if (group < 0 || fanotify_mark(group, FAN_MARK_ADD, events, AT_FDCWD, "file"))
        return -1;
    if (fork() == 0) {
        char byte;
        alarm(5);
        _exit(read(opened(O_RDONLY), &byte, 1) != 1); /* refused if the descriptor is */
    }
    for (int patience = 0; patience < 100; patience++, usleep(10000))
        if (read(group, &event, sizeof event) > 0)
            return event.fd < 0 ? -1 : write(event.fd, "changed", 7);
        else if (errno != EAGAIN)
            return -1;
    return -1;
}
OPERATION(ATTACK, watched_open) { return watched(FAN_CLASS_NOTIF, FAN_OPEN); }
OPERATION(ATTACK, watched_permission) { return watched(FAN_CLASS_CONTENT, FAN_OPEN_PERM); }
OPERATION(ATTACK, watched_before_access) { return watched(FAN_CLASS_PRE_CONTENT, 0x100000 /* FAN_PRE_ACCESS */); }

static bool has_sys(void)
{
    mkdir("/sys", 0755);
    return !access("/sys/block", F_OK) || !mount("sysfs", "/sys", "sysfs", 0, NULL);
}
OPERATION(ATTACK, backing_of_memory_disk)
{
    int fd = has_sys() ? open("/sys/block/zram0/backing_dev", O_WRONLY) : -1;
    return fd < 0 ? -1 : write(fd, "file", 4) < 0 ? -1 : 0;
}

/* A breakpoint of the kernel's, in a program that is mapped. */
OPERATION(ATTACK, breakpoint)
{
    static char content[8192];
    struct perf_event_attr probe = {.size = sizeof probe, .disabled = 0};
    FILE *type = has_sys() ? fopen("/sys/bus/event_source/devices/uprobe/type", "r") : NULL;
    char *at;
    int fd;
    memset(content, 0x90, sizeof content); /* the instruction that does nothing */
    if (!type || fscanf(type, "%u", &probe.type) != 1 || !make_marked("program", content, sizeof content))
        return -1;
    at = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, open("program", O_RDONLY), 0);
    probe.config1 = ADDRESS("program");
    probe.config2 = 16;
    fd = sys(perf_event_open, &probe, 0, -1, -1, 0);
    if (fd < 0 || at == MAP_FAILED)
        return -1;
    errno = EPERM;
    found("marked_program", is_changed("program", content, sizeof content));
    return at[16] == (char)0x90 ? -1 : 0;
}

/* The kernel writes to the file with the quotas of a filesystem, and sets its flags. */
OPERATION(ATTACK, quota_file)
{
    static struct {
        uint32_t magic, version, block_grace, inode_grace, flags, blocks, free_block, free_entry;
        char rest[1024 * 6 - 32];
    } content = {0xd9c01f11, 1, 604800, 604800, 0, 2, 0, 0, ""};
    struct stat status;
    long result;
    int error;
    if (!make_marked("quota", &content, sizeof content) || stat("/", &status))
        return -1;
    if (mknod("/disk", S_IFBLK | 0600, status.st_dev) && errno != EEXIST)
        return -1;
    if (mount(NULL, "/", NULL, MS_REMOUNT, "usrquota"))
        return -1;
    result = sys(quotactl, 0x80000200, "/disk", 4, "quota"); /* Q_QUOTAON of users, QFMT_VFS_V1 */
    error = errno;
    if (!result) {
        if (chown("other", 1234, 1234))
            return -1;
        sys(quotactl, 0x80000100, "/disk", 0, NULL); /* Q_SYNC */
        sys(quotactl, 0x80000300, "/disk", 0, NULL); /* Q_QUOTAOFF */
    }
    found("marked_quota_file", is_changed("quota", &content, sizeof content));
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
