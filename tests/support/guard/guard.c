/* Tries what can be done to a marked file, and tells what came of it.
 *
 *   guard table DIR marked|single PATTERN  every operation, in a new directory below DIR, on a file with the flag noatime
 *                                          that has two links or one; PATTERN: "all", "table", "attacks", or a name
 *   guard without COMMAND...               a command without CAP_LINUX_IMMUTABLE
 *   guard userns COMMAND...                a command as root of a user namespace, with all capabilities there
 *   guard guest ROOT COMMAND...            a command with mounts and processes of its own, and this root directory
 *   guard subvolume DIR                    makes a subvolume of btrfs
 *   guard prepare DIR                      makes a directory for every operation, with a file of its own content
 *   guard tenant DIR OTHER                 what may change a file, on those of two prepared directories that share their
 *                                          inodes with a third one: removes both names first, and keeps a descriptor
 *
 * A line an operation: NAME KIND RESULT STATE. RESULT is "ok" or the error's name; STATE is "same" or "changed", about
 * the content and metadata of the inode (but its number of links and the time of its last change), or "gone" if no name
 * is left. Exit code 2: usage or trouble. */
#include "guard.h"

#include <dirent.h>
#include <linux/capability.h>
#include <signal.h>

static struct {
    const char *name;
    enum kind kind;
    operation *run;
} operations[256];
static size_t used;

void add_operation(const char *name, enum kind kind, operation *run)
{
    if (used == sizeof operations / sizeof *operations)
        abort();
    operations[used].name = name;
    operations[used].kind = kind;
    operations[used++].run = run;
}

void die(const char *what)
{
    fflush(stdout);
    perror(what);
    _exit(2);
}

static long must(const char *what, long result)
{
    if (result < 0)
        die(what);
    return result;
}

int reader(void) { return must("file", opened(O_RDONLY)); }
int other(void) { return must("other", open("other", O_RDWR | O_CLOEXEC)); }

static void fill_with(const char *name, char byte, const char *more)
{
    static const struct timespec times[2] = {{1000000000, 1}, {1000000001, 2}};
    char content[SIZE];
    int fd = must(name, open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
    memset(content, byte, SIZE);
    memcpy(content + 1, more, strlen(more));
    must(name, write(fd, content, SIZE) == SIZE ? 0 : -1);
    must(name, fsetxattr(fd, "user.one", "first", 5, 0));
    must(name, futimens(fd, times));
    close(fd);
}
static void fill(const char *name, char byte) { fill_with(name, byte, ""); }

static const struct {
    uint32_t magic;
    struct {
        uint32_t permitted, inheritable;
    } data[2];
} capability = {0x02000001, {{1 << CAP_NET_RAW, 0}, {0, 0}}};

static void make_others(void)
{
    fill("other", 'o');
    must("void", mkdir("void", 0755));
    must("symlink", symlink("file", "symlink"));
}

static void make_files(bool marked)
{
    int fd, flags;
    fill("file", 'f');
    make_others();
    must("capability", setxattr("file", "security.capability", &capability, 20, 0));
    fd = reader();
    must("flags", ioctl(fd, FS_IOC_GETFLAGS, &flags));
    flags |= FS_NOATIME_FL;
    must("flags", ioctl(fd, FS_IOC_SETFLAGS, &flags));
    if (marked)
        must("second", link("file", "second"));
    close(fd);
}

static uint64_t hash(const void *bytes, size_t size, uint64_t state)
{
    for (const unsigned char *byte = bytes; size; byte++, size--)
        state = (state ^ *byte) * 0x100000001b3;
    return state;
}

/* All there is to see of an inode. */
static void observe(int fd, char *text, size_t room)
{
    static char buffer[65536];
    uint64_t content = 1, attributes = 0;
    struct stat status;
    struct fsxattr more = {0};
    unsigned flags = 0, generation = 0;
    char names[4096];
    ssize_t size;
    for (int times = 0; times < 2; times++) {
        must("seek", lseek(fd, 0, SEEK_SET));
        content = 1;
        while ((size = read(fd, buffer, sizeof buffer)) > 0)
            content = hash(buffer, size, content);
        /* Once from the page cache, and once from the disk. */
        sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE_AND_WAIT);
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    }
    must("stat", fstat(fd, &status));
    ioctl(fd, FS_IOC_GETFLAGS, &flags);
    ioctl(fd, FS_IOC_GETVERSION, &generation);
    ioctl(fd, FS_IOC_FSGETXATTR, &more);
    size = flistxattr(fd, names, sizeof names);
    for (char *name = names; name < names + size; name += strlen(name) + 1) {
        ssize_t value = fgetxattr(fd, name, buffer, sizeof buffer);
        attributes += hash(name, strlen(name), hash(buffer, value < 0 ? 0 : value, 7)); /* in any order */
    }
    snprintf(text, room, "%llx %lld %o %u:%u %lld.%ld %lld.%ld %x %u %x %u %u %llx", (unsigned long long)content,
             (long long)status.st_size, status.st_mode, status.st_uid, status.st_gid, (long long)status.st_atim.tv_sec,
             status.st_atim.tv_nsec, (long long)status.st_mtim.tv_sec, status.st_mtim.tv_nsec, flags, generation,
             more.fsx_xflags, more.fsx_projid, more.fsx_extsize, (unsigned long long)attributes);
}

/* The operation's error number. */
static int tried(operation *run)
{
    int ends[2], error = 0, status;
    pid_t child;
    must("pipe", pipe2(ends, O_CLOEXEC));
    child = must("fork", fork());
    if (!child) {
        alarm(60);
        errno = 0;
        error = run() < 0 ? errno ? errno : EIO : 0;
        must("pipe", write(ends[1], &error, sizeof error));
        _exit(0);
    }
    close(ends[1]);
    if (read(ends[0], &error, sizeof error) != sizeof error)
        error = -1;
    close(ends[0]);
    must("wait", waitpid(child, &status, 0));
    return error;
}

/* In the directory with the files. */
static void try_here(size_t number, bool marked)
{
    static const char *const kinds[] = {"change", "flags", "capability", "name", "read", "attack"};
    char before[512], after[512];
    int fd, error;
    const char *state;
    fd = reader();
    observe(fd, before, sizeof before);
    if (!marked) /* programs that run, and leases, want no other descriptor */
        close(fd);
    error = tried(operations[number].run);
    if (!marked)
        fd = open("file", O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        state = "gone";
    } else {
        observe(fd, after, sizeof after);
        state = strcmp(before, after) ? "changed" : "same";
        close(fd);
    }
    printf("%s %s %s %s\n", operations[number].name, kinds[operations[number].kind],
           error < 0 ? "killed" : error ? strerrorname_np(error) : "ok", state);
    if (marked && !strcmp(state, "changed"))
        printf("  %s\n  %s\n", before, after);
    fflush(stdout);
}

static void try(size_t number, bool marked)
{
    must(operations[number].name, mkdir(operations[number].name, 0755));
    must(operations[number].name, chdir(operations[number].name));
    make_files(marked);
    try_here(number, marked);
    must("..", chdir(".."));
}

static bool wanted(size_t number, const char *pattern)
{
    bool attack = operations[number].kind == ATTACK;
    return !strcmp(pattern, "all") || !strcmp(pattern, attack ? "attacks" : "table")
           || !strcmp(pattern, operations[number].name);
}

static int table(const char *top, bool marked, const char *pattern)
{
    char name[] = "tried.XXXXXX";
    must(top, chdir(top));
    must(name, mkdtemp(name) ? 0 : -1);
    must(name, chdir(name));
    umask(0);
    for (size_t number = 0; number < used; number++)
        if (wanted(number, pattern))
            try(number, marked);
    return 0;
}

static bool may_change(size_t number) { return operations[number].kind != NAME && operations[number].kind != READ; }

static int prepare(const char *top)
{
    char content[PATH_MAX];
    umask(0);
    for (size_t number = 0; number < used; number++) {
        if (!may_change(number))
            continue;
        must(top, chdir(top));
        must(operations[number].name, mkdir(operations[number].name, 0755));
        must(operations[number].name, chdir(operations[number].name));
        snprintf(content, sizeof content, "%s, %s", operations[number].name, basename(top));
        fill_with("file", 'f', content);
    }
    return 0;
}

/* `file` becomes a way to the inode that no name in a guest leads to. */
static void remove_names(const char *second)
{
    enum { KEPT = 100 };
    char path[32];
    struct stat status;
    must("file", dup2(reader(), KEPT));
    must("file", fstat(KEPT, &status));
    if (status.st_nlink < 3)
        die("a file is not shared with a third name");
    must("file", unlink("file"));
    must(second, unlink(second));
    make_others();
    snprintf(path, sizeof path, "/proc/self/fd/%d", KEPT);
    must(path, symlink(path, "file"));
}

static int tenant(const char *top, const char *second)
{
    char path[PATH_MAX];
    umask(0);
    for (size_t number = 0; number < used; number++) {
        if (!may_change(number))
            continue;
        must(top, chdir(top));
        must(operations[number].name, chdir(operations[number].name));
        snprintf(path, sizeof path, "%s/%s/file", second, operations[number].name);
        remove_names(path);
        try_here(number, true);
    }
    return 0;
}

static int outcome(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status); }

static void run(char **command)
{
    execv(command[0], command);
    die(command[0]);
}

static int waited(pid_t child)
{
    int status;
    while (must("wait", wait(&status)) != child)
        ;
    return outcome(status);
}

static void write_file(const char *format, pid_t pid, const char *text)
{
    char path[64];
    int fd;
    snprintf(path, sizeof path, format, pid);
    fd = must(path, open(path, O_WRONLY | O_CLOEXEC));
    must(path, write(fd, text, strlen(text)));
    close(fd);
}

/* All ids are what they are outside, so that nothing is refused because of an owner. */
static int in_user_namespace(char **command)
{
    int ready[2], mapped[2];
    char byte;
    pid_t child;
    must("pipe", pipe(ready));
    must("pipe", pipe(mapped));
    child = must("fork", fork());
    if (!child) {
        must("unshare", unshare(CLONE_NEWUSER | CLONE_NEWNS));
        must("pipe", write(ready[1], "", 1));
        must("pipe", read(mapped[0], &byte, 1));
        must("setresuid", setresuid(0, 0, 0));
        run(command);
    }
    must("pipe", read(ready[0], &byte, 1));
    write_file("/proc/%d/uid_map", child, "0 0 65536\n");
    write_file("/proc/%d/gid_map", child, "0 0 65536\n");
    must("pipe", write(mapped[1], "", 1));
    return waited(child);
}

static int in_guest(const char *root, char **command)
{
    pid_t child;
    must("unshare", unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWUTS));
    child = must("fork", fork());
    if (!child) {
        must("/", mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
        must(root, mount(root, root, NULL, MS_BIND | MS_REC, NULL));
        must(root, chdir(root));
        must("dev", mount("/dev", "dev", NULL, MS_BIND, NULL));
        must("pivot_root", sys(pivot_root, ".", "."));
        must("umount", umount2(".", MNT_DETACH));
        must("proc", mount("proc", "/proc", "proc", 0, NULL));
        child = must("fork", fork());
        if (!child)
            run(command);
        _exit(waited(child));
    }
    return waited(child);
}

static int make_subvolume(const char *path)
{
    struct {
        int64_t fd;
        char name[4088];
    } subvolume = {0, ""};
    const char *name = strrchr(path, '/');
    char parent[PATH_MAX];
    if (!name || (size_t)(name - path) >= sizeof parent)
        return 2;
    memcpy(parent, path, name - path);
    parent[name - path] = '\0';
    snprintf(subvolume.name, sizeof subvolume.name, "%s", name + 1);
    must(path, ioctl(open(parent, O_RDONLY), _IOW(0x94, 14, subvolume), &subvolume));
    return 0;
}

int main(int argc, char **argv)
{
    const char *verb = argc > 2 ? argv[1] : "";
    if (argc == 5 && !strcmp(verb, "table"))
        return table(argv[2], !strcmp(argv[3], "marked"), argv[4]);
    if (!strcmp(verb, "without")) {
        must("capability", prctl(PR_CAPBSET_DROP, CAP_LINUX_IMMUTABLE, 0, 0, 0));
        run(argv + 2);
    }
    if (!strcmp(verb, "userns"))
        return in_user_namespace(argv + 2);
    if (argc == 3 && !strcmp(verb, "subvolume"))
        return make_subvolume(argv[2]);
    if (argc == 3 && !strcmp(verb, "prepare"))
        return prepare(argv[2]);
    if (argc == 4 && !strcmp(verb, "tenant"))
        return tenant(argv[2], argv[3]);
    if (argc > 3 && !strcmp(verb, "guest"))
        return in_guest(argv[2], argv + 3);
    fputs("usage: guard table DIR marked|single PATTERN | without COMMAND... | userns COMMAND... | guest ROOT COMMAND...\n"
          "          | subvolume DIR | prepare DIR | tenant DIR OTHER\n", stderr);
    return 2;
}
