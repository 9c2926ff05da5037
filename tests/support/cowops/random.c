/* Random sequences of operations: the same from the same seed, whatever else differs. */
#include "cowops.h"

#include <linux/openat2.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/xattr.h>

bool always_nobody;

static uint64_t state;

static uint64_t next_number(void)
{
    uint64_t mixed = state += 0x9e3779b97f4a7c15;
    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111eb;
    return mixed ^ mixed >> 31;
}

static unsigned below(unsigned limit) { return next_number() % limit; }
static bool once_in(unsigned times) { return below(times) == 0; }
#define ONE_OF(list) ((list)[below(sizeof(list) / sizeof *(list))])

/* In all that follows, no two random numbers are taken in one expression: their order would be the compiler's choice. */

/* The names: first those of files that are shared in a farm. */
static const char *const names[] = {
    "file", "other", "empty", "program", "setid", "attributes", "sparse", "everyones", "nobodys", "pair", "d/pair",
    "d/one", "d/two", "d/deep/three", "common/file", "sticky/file", "sticky/nobodys",
    "own", "d/deep/own", "link", "d/up", "absolute", "magic", "dangling", "loop", "dirlink", "dirlink/one",
    "dirlink/deep/three", "fifo", "d", "d/deep", "void", "common", "new", "d/new", "void/new", "common/new", "nowhere",
    "d/../file", "./other", "d/deep/../one", "dirlink/../file", "void/../d/two", "missing/x", "file/x", "file/", "d/",
    "",
};
#define FILES 17
#define NAMES (sizeof names / sizeof *names)

/* Where descriptors are kept from one step to the next. */
#define SLOTS 5
static int slots[SLOTS], tree, directory;
static char top[PATH_MAX];

/* A name, and what it is relative to. */
struct place {
    int dir;
    const char *path;
};

/* Where there is nothing at first. */
static const char *const unused[] = {"new", "d/new", "void/new", "common/new", "linked", "d/linked", "nowhere"};

static const char *any_name(void) { return names[below(10) < 6 ? below(FILES) : below(NAMES)]; }

static int an_open_slot(void)
{
    for (int tries = 0, slot = below(SLOTS); tries < SLOTS; tries++, slot = (slot + 1) % SLOTS)
        if (slots[slot] >= 0)
            return slot;
    return -1;
}

/* A path that means the same from everywhere. */
static const char *any_path(void)
{
    static char paths[4][2 * PATH_MAX];
    static int turn;
    char *path = paths[turn = (turn + 1) % 4];
    const char *name = any_name();
    int slot;
    switch (below(16)) {
    case 0:
        snprintf(path, sizeof paths[0], "%s/%s", top, name);
        break;
    case 1:
        snprintf(path, sizeof paths[0], "/proc/self/cwd/%s", name);
        break;
    case 2:
        snprintf(path, sizeof paths[0], "/proc/self/fd/%d/%s", tree, name);
        break;
    case 3:
        slot = an_open_slot();
        if (slot >= 0) {
            snprintf(path, sizeof paths[0], once_in(2) ? "/proc/self/fd/%d" : "/dev/fd/%d", slots[slot]);
            break;
        }
        /* fall through */
    default:
        return name;
    }
    return path;
}

static struct place any_place(void)
{
    static char paths[4][2 * PATH_MAX];
    static int turn;
    const char *name = any_path();
    if (*name == '/' || once_in(2))
        return (struct place){AT_FDCWD, name};
    if (once_in(2) || !*name)
        return (struct place){tree, name};
    turn = (turn + 1) % 4;
    snprintf(paths[turn], sizeof paths[0], "../%s", name);
    return (struct place){directory, paths[turn]};
}

/* Where something is to be made: mostly where there is nothing. */
static struct place any_target(void)
{
    const char *name = ONE_OF(unused);
    return once_in(3) ? any_place() : (struct place){once_in(2) ? AT_FDCWD : tree, name};
}

static const char *shown(int dir) { return dir == AT_FDCWD ? "" : dir == tree ? "(.)" : "(d)"; }

static void result(const char *what, const char *subject, long value)
{
    printf("  %s %s: %s\n", what, subject, value < 0 ? error_name(errno) : "ok");
}
static void result_at(const char *what, struct place place, long value)
{
    printf("  %s %s%s: %s\n", what, shown(place.dir), place.path, value < 0 ? error_name(errno) : "ok");
}
static void result_of(const char *what, int slot, long value)
{
    printf("  %s #%d: %s\n", what, slot, value < 0 ? error_name(errno) : "ok");
}

/* Steps with names. */

/* O_LARGEFILE, which 64-bit headers say is 0. */
enum { LARGE_FILE = 0100000 };

static void keep(int fd)
{
    int slot = below(SLOTS);
    /* The first two cannot be given to a descriptor that another process opens. */
    int flags = fcntl(fd, F_GETFL) & ~(LARGE_FILE | O_NOFOLLOW);
    if (without_places && fcntl(fd, F_GETFL) & O_PATH) {
        close(fd);
        return;
    }
    if (slots[slot] >= 0)
        close(slots[slot]);
    slots[slot] = fd;
    printf("  kept as #%d, fd %d flags %#o %d\n", slot, fd, flags, fcntl(fd, F_GETFD));
}

static void use(long fd)
{
    if (fd < 0)
        return;
    if (once_in(2)) {
        keep(fd);
        return;
    }
    if (once_in(2))
        result("write", "it", write(fd, "written at once\n", below(17)));
    close(fd);
}

static int any_flags(void)
{
    static const int modes[] = {O_RDONLY, O_WRONLY, O_RDWR, O_RDONLY, O_WRONLY, O_RDWR, O_ACCMODE};
    static const int more[] = {O_CREAT,     O_TRUNC,   O_APPEND, O_EXCL | O_CREAT, O_NOFOLLOW,
                               O_DIRECTORY, O_CLOEXEC, O_PATH,   O_NOATIME};
    int flags = ONE_OF(modes) | O_NONBLOCK;
    for (int times = below(3); times > 0; times--)
        flags |= ONE_OF(more);
    return flags;
}

static void step_open(void)
{
    struct place place = any_place();
    int flags = any_flags(), mode = once_in(2) ? 0600 : 0644;
    long fd = sys(openat, place.dir, place.path, flags, mode);
    printf("  flags %#o\n", flags);
    result_at("open", place, fd);
    use(fd);
}

static void step_open2(void)
{
    static const int resolve[] = {0, RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH,
                                  RESOLVE_IN_ROOT};
    struct place place = any_place();
    struct open_how how = {.flags = any_flags()};
    how.resolve = ONE_OF(resolve);
    if (how.flags & O_CREAT)
        how.mode = 0640;
    long fd;
    /* ".." while anybody renames something, anywhere: openat2(2). */
    for (int tries = 0; (fd = sys(openat2, place.dir, place.path, &how, sizeof how)) < 0 && errno == EAGAIN && tries < 100;)
        tries++;
    printf("  flags %#llo resolve %#llx\n", (unsigned long long)how.flags, (unsigned long long)how.resolve);
    result_at("openat2", place, fd);
    use(fd);
}

static const mode_t modes[] = {0600, 0644, 0755, 04755, 02711, 0666, 0};
static const off_t lengths[] = {0, 1, 100, 600, 4096, 10000, 300000};
static const uid_t owners[] = {0, 5, 1000, NOBODY, -1, -1};

static const struct time64 *any_times(void)
{
    static struct time64 times[2];
    for (int i = 0; i < 2; i++) {
        static const int special[] = {UTIME_NOW, UTIME_OMIT};
        times[i].seconds = 1000000000 + below(50000000);
        times[i].nanoseconds = once_in(4) ? ONE_OF(special) : (int)below(1000000000);
    }
    return once_in(8) ? NULL : times;
}

static void step_truncate(void)
{
    const char *path = any_path();
    off_t length = ONE_OF(lengths);
    result("truncate", path, wide(truncate, path, LONG64(length)));
}

static void step_chmod(void)
{
    struct place place = any_place();
    const char *path = any_path();
    mode_t mode = ONE_OF(modes);
    int flags = once_in(2) ? AT_SYMLINK_NOFOLLOW : 0;
    if (once_in(2))
        result_at("fchmodat", place, sys(fchmodat, place.dir, place.path, mode));
    else if (once_in(2))
        result_at("fchmodat2", place, sys(fchmodat2, place.dir, place.path, mode, flags));
    else
        result("chmod", path, chmod(path, mode));
}

static void step_chown(void)
{
    struct place place = any_place();
    const char *path = any_path();
    uid_t owner = ONE_OF(owners), group = ONE_OF(owners);
    int flags = once_in(2) ? AT_SYMLINK_NOFOLLOW : 0;
    if (once_in(2))
        result_at("fchownat", place, fchownat(place.dir, place.path, owner, group, flags));
    else if (once_in(2))
        result("chown", path, chown(path, owner, group));
    else
        result("lchown", path, lchown(path, owner, group));
}

static void step_times(void)
{
    struct place place = any_place();
    const struct time64 *times = any_times();
    result_at("utimensat", place, sys_utimensat(place.dir, place.path, times, once_in(2) ? AT_SYMLINK_NOFOLLOW : 0));
}

static const char *const attribute_names[] = {"user.one",      "user.two",            "user.new",
                                              "trusted.three", "security.capability", "system.posix_acl_access"};

static void step_setxattr(void)
{
    static const char *const plain[] = {"user.one", "user.two", "user.new", "trusted.three"};
    const char *path = any_path(), *name = ONE_OF(plain);
    size_t size = below(20);
    if (once_in(2))
        result("setxattr", path, setxattr(path, name, "the value of an attribute", size, below(3)));
    else
        result("lsetxattr", path, lsetxattr(path, name, "the value of an attribute", size, 0));
}

static void step_removexattr(void)
{
    const char *path = once_in(2) ? "attributes" : any_path(), *name = ONE_OF(attribute_names);
    result("removexattr", path, removexattr(path, name));
}

static void step_unlink(void)
{
    struct place place = any_place();
    result_at("unlink", place, sys(unlinkat, place.dir, place.path, once_in(6) ? AT_REMOVEDIR : 0));
}

static void step_rename(void)
{
    static const unsigned flags[] = {0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT};
    struct place from = any_place(), to = once_in(2) ? any_place() : any_target();
    unsigned flag = ONE_OF(flags);
    printf("  from %s%s flags %u\n", shown(from.dir), from.path, flag);
    result_at("rename", to, sys(renameat2, from.dir, from.path, to.dir, to.path, flag));
}

static void step_link(void)
{
    struct place from = any_place(), to = any_target();
    printf("  from %s%s\n", shown(from.dir), from.path);
    result_at("link", to, linkat(from.dir, from.path, to.dir, to.path, once_in(2) ? AT_SYMLINK_FOLLOW : 0));
}

static void step_make(void)
{
    struct place place = any_target();
    switch (below(3)) {
    case 0: result_at("mkdir", place, mkdirat(place.dir, place.path, 0755)); break;
    case 1: result_at("symlink", place, symlinkat(any_name(), place.dir, place.path)); break;
    case 2: result_at("mknod", place, mknodat(place.dir, place.path, S_IFREG | 0644, 0)); break;
    }
}

static void step_replace(void)
{
    /* As editors do. */
    const char *name = any_name();
    int fd = open(".replacement", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd >= 0 && write(fd, "replaced\n", 9) == 9)
        close(fd);
    result("replace", name, rename(".replacement", name));
    unlink(".replacement");
}

static void step_look(void)
{
    const char *name = any_name();
    printf("  look: ");
    describe(AT_FDCWD, name, name);
}

/* Steps with descriptors. */

static void show_descriptor(int slot)
{
    struct stat status;
    char text[9] = "";
    int fd = slots[slot];
    ssize_t size;
    if (fstat(fd, &status))
        die("fstat");
    size = pread(fd, text, 8, below(1000));
    printf("  #%d: %06o %u:%u %lld", slot, status.st_mode, status.st_uid, status.st_gid,
           S_ISREG(status.st_mode) ? (long long)status.st_size : 0);
    if (was_set(status.st_mtim.tv_sec) && !S_ISDIR(status.st_mode))
        printf(" %lld.%09ld", (long long)status.st_mtim.tv_sec, status.st_mtim.tv_nsec);
    printf(" at %lld", (long long)lseek(fd, 0, SEEK_CUR));
    if (size < 0)
        printf(" %s\n", error_name(errno));
    else
        printf(" %02x%02x%02x%02x\n", text[0], text[1], text[2], text[3]);
}

static void change_descriptor(int slot)
{
    int fd = slots[slot];
    off_t length = ONE_OF(lengths);
    mode_t mode = ONE_OF(modes);
    uid_t owner = ONE_OF(owners), group = ONE_OF(owners);
    const char *name = ONE_OF(attribute_names);
    unsigned size = below(13), flags;
    switch (below(13)) {
    case 0: result_of("write", slot, write(fd, "by descriptor\n", 14)); break;
    case 1: result_of("pwrite", slot, pwrite(fd, "at a place\n", 11, length)); break;
    case 2: result_of("ftruncate", slot, wide(ftruncate, fd, LONG64(length))); break;
    case 3: result_of("fchmod", slot, fchmod(fd, mode)); break;
    case 4: result_of("fchown", slot, fchown(fd, owner, group)); break;
    case 5: result_of("utimensat", slot, sys_utimensat(fd, NULL, any_times(), 0)); break;
    case 6: result_of("fsetxattr", slot, fsetxattr(fd, "user.new", "by descriptor", size, 0)); break;
    case 7: result_of("fremovexattr", slot, fremovexattr(fd, name)); break;
    case 8: result_of("fallocate", slot, fallocate(fd, size % 2, length, 1 + 400 * size)); break;
    case 9: result_of("fchmodat2", slot, sys(fchmodat2, fd, "", mode, AT_EMPTY_PATH)); break;
    case 10: result_of("fchownat", slot, sys(fchownat, fd, "", owner, group, AT_EMPTY_PATH)); break;
    case 11:
        if (ioctl(fd, FS_IOC_GETFLAGS, &flags)) {
            result_of("flags", slot, -1);
        } else {
            flags ^= FS_NODUMP_FL;
            result_of("flags", slot, ioctl(fd, FS_IOC_SETFLAGS, &flags));
        }
        break;
    case 12: {
        void *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        struct stat status;
        if (map != MAP_FAILED && !fstat(fd, &status) && status.st_size >= 16)
            memcpy(map, "through a map", 13);
        result_of("mmap", slot, map == MAP_FAILED ? -1 : 0);
        if (map != MAP_FAILED) {
            msync(map, 4096, MS_SYNC);
            munmap(map, 4096);
        }
        break;
    }
    }
}

static void step_descriptor(void)
{
    int slot = an_open_slot();
    if (slot < 0) {
        step_open();
        return;
    }
    switch (below(12)) {
    case 0:
        close(slots[slot]);
        slots[slot] = -1;
        printf("  close #%d\n", slot);
        break;
    case 1:
        printf("  seek #%d: %lld\n", slot, (long long)lseek(slots[slot], ONE_OF(lengths), SEEK_SET));
        break;
    case 2: {
        int copy = dup(slots[slot]);
        printf("  dup #%d\n", slot);
        keep(copy);
        break;
    }
    case 3:
    case 4:
        show_descriptor(slot);
        break;
    case 5:
        if (without_children)
            break;
        IN_CHILD {
            alarm(60);
            change_descriptor(slot);
            show_descriptor(slot);
        }
        break;
    case 6: {
        struct place to = any_target();
        result_at("link descriptor", to, linkat(slots[slot], "", to.dir, to.path, AT_EMPTY_PATH));
        break;
    }
    default:
        change_descriptor(slot);
    }
}

static void run_step(void)
{
    static void (*const steps[])(void) = {
        step_open, step_open, step_open, step_open2, step_truncate, step_chmod, step_chown, step_times, step_setxattr,
        step_removexattr, step_unlink, step_rename, step_rename, step_link, step_make, step_replace, step_look,
        step_descriptor, step_descriptor, step_descriptor, step_descriptor, step_descriptor,
    };
    void (*step)(void) = ONE_OF(steps);
    bool nobody = once_in(8) || always_nobody;
    /* The kernel's view of this thread alone is changed, and back again. */
    if (nobody && (sys(setresgid, -1, NOBODY, -1) || sys(setresuid, -1, NOBODY, -1)))
        die("setresuid");
    if (nobody)
        printf("  as nobody\n");
    step();
    if (nobody && (sys(setresuid, -1, 0, -1) || sys(setresgid, -1, 0, -1)))
        die("setresuid");
}

static void run_sequence(uint64_t seed, int steps)
{
    state = seed;
    printf("seed %llu\n", (unsigned long long)seed);
    tree = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    directory = open("d", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (tree < 0 || directory < 0 || !getcwd(top, sizeof top))
        die("tree");
    for (int slot = 0; slot < SLOTS; slot++)
        slots[slot] = -1;
    for (int readers = below(3); readers > 0; readers--)
        keep(open(names[below(FILES)], O_RDONLY | O_CLOEXEC));
    for (int number = 1; number <= steps; number++) {
        printf(" step %d\n", number);
        run_step();
    }
    printf(" then\n");
    for (int slot = 0; slot < SLOTS; slot++)
        if (slots[slot] >= 0)
            show_descriptor(slot);
    dump();
    for (int slot = 0; slot < SLOTS; slot++)
        if (slots[slot] >= 0)
            close(slots[slot]);
    close(tree);
    close(directory);
}

int run_random(uint64_t seed, int steps, int number)
{
    int start = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    umask(022);
    for (int i = 0; i < number; i++) {
        char name[32];
        snprintf(name, sizeof name, "t%d", i);
        if (fchdir(start) || chdir(name))
            die(name);
        alarm(60);
        run_sequence(seed + i, steps);
        fflush(stdout);
    }
    return 0;
}
