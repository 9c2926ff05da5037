/* The trees that operations are tried on, and what is to be seen of them. */
#include "cowops.h"

#include <elf.h>
#include <linux/capability.h>
#include <linux/posix_acl.h>
#include <linux/posix_acl_xattr.h>
#include <linux/xattr.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

/* Times that are set lie before this one, and those of changes after it. */
#define LONG_AGO 1000000000
#define SET_BEFORE 1100000000

bool without_pairs, without_places, without_children, without_directory_times;

enum kind { DIRECTORY, SHARED, PRIVATE, LINK, SYMLINK, FIFO };

/* What every tree has. A shared file is one inode in the pristine tree and all of the farm. */
static const struct entry {
    enum kind kind;
    const char *name;
    mode_t mode;
    uid_t uid;
    gid_t gid;
    off_t size;
    const char *target; /* of a link; of a symlink from the tree on if it begins with "%" */
} entries[] = {
    {DIRECTORY, "d", 0755, 0, 0, 0, NULL},
    {DIRECTORY, "d/deep", 0755, 0, 0, 0, NULL},
    {DIRECTORY, "void", 0755, 0, 0, 0, NULL},
    {DIRECTORY, "common", 0777, 0, 0, 0, NULL},
    {DIRECTORY, "sticky", 01777, 0, 0, 0, NULL},
    {SHARED, "file", 0644, 0, 0, 600, NULL},
    {SHARED, "other", 0640, 1000, 1000, 5000, NULL},
    {SHARED, "empty", 0644, 0, 0, 0, NULL},
    {SHARED, "program", 0755, 0, 0, 300, NULL},
    {SHARED, "setid", 06755, 0, 1000, 700, NULL},
    {SHARED, "attributes", 0644, 0, 0, 800, NULL},
    {SHARED, "sparse", 0644, 0, 0, 200 << 10, NULL},
    {SHARED, "everyones", 0666, 0, 0, 900, NULL},
    {SHARED, "nobodys", 0644, NOBODY, NOBODY, 1000, NULL},
    {SHARED, "unreadable", 0200, NOBODY, NOBODY, 1050, NULL},
    {SHARED, "pair", 0644, 0, 0, 1100, NULL},
    {LINK, "d/pair", 0644, 0, 0, 1150, "pair"},
    {SHARED, "d/one", 0644, 0, 0, 1200, NULL},
    {SHARED, "d/two", 0600, 0, 0, 1300, NULL},
    {SHARED, "d/deep/three", 0644, 0, 0, 1400, NULL},
    {SHARED, "common/file", 0644, 0, 0, 1500, NULL},
    {SHARED, "sticky/file", 0644, 0, 0, 1600, NULL},
    {SHARED, "sticky/nobodys", 0644, NOBODY, NOBODY, 1700, NULL},
    {PRIVATE, "own", 0644, 0, 0, 650, NULL},
    {PRIVATE, "d/deep/own", 0644, 0, 0, 750, NULL},
    {SYMLINK, "link", 0777, 0, 0, 0, "file"},
    {SYMLINK, "d/up", 0777, 0, 0, 0, "../file"},
    {SYMLINK, "absolute", 0777, 0, 0, 0, "%file"},
    {SYMLINK, "rooted", 0777, 0, 0, 0, "/d/one"},
    {SYMLINK, "magic", 0777, 0, 0, 0, "/proc/self/cwd/file"},
    {SYMLINK, "dangling", 0777, 0, 0, 0, "nowhere"},
    {SYMLINK, "loop", 0777, 0, 0, 0, "loop"},
    {SYMLINK, "dirlink", 0777, 0, 0, 0, "d"},
    {FIFO, "fifo", 0644, 0, 0, 0, NULL},
};
#define ENTRIES (sizeof entries / sizeof *entries)

static void must(const char *what, int result)
{
    if (result < 0)
        die(what);
}

/* A program that writes a byte, and then waits: the smallest one for x86-64, no program at all elsewhere. */
static const struct {
    Elf64_Ehdr header;
    Elf64_Phdr segment;
    unsigned char code[32];
} program = {
    {{0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT}, ET_EXEC, EM_X86_64, EV_CURRENT,
     0x400000 + sizeof(Elf64_Ehdr) + sizeof(Elf64_Phdr), sizeof(Elf64_Ehdr), 0, 0, sizeof(Elf64_Ehdr),
     sizeof(Elf64_Phdr), 1, 0, 0, 0},
    {PT_LOAD, PF_R | PF_X, 0, 0x400000, 0x400000, 300, 300, 0x1000},
    {0xb8, 1, 0, 0, 0,    /* mov eax, 1: write */
     0x89, 0xc7,          /* mov edi, eax */
     0xbe, 0, 0, 0x40, 0, /* mov esi, 0x400000 */
     0x89, 0xc2,          /* mov edx, eax */
     0x0f, 0x05,          /* syscall */
     0xb8, 34, 0, 0, 0,   /* mov eax, 34: pause */
     0x0f, 0x05,          /* syscall */
     0xeb, 0xf7},         /* once more */
};

static void fill(int fd, const struct entry *entry)
{
    char content[8192];
    int used = 0;
    if (entry->size > (off_t)sizeof content) {
        must(entry->name, ftruncate(fd, entry->size));
        for (off_t at = 0; at < entry->size; at += entry->size / 3)
            must(entry->name, pwrite(fd, "data between holes\n", 19, at));
        return;
    }
    if (!strcmp(entry->name, "program")) {
        memcpy(content, &program, sizeof program);
        used = sizeof program;
    }
    while (used < entry->size)
        used += snprintf(content + used, sizeof content - used, "%s at %d\n", entry->name, used);
    must(entry->name, write(fd, content, entry->size));
}

static void set_attribute(int fd, const char *name, const void *value, size_t size)
{
    must(name, fsetxattr(fd, name, value, size, 0));
}

static void set_attributes(int fd)
{
    static const struct {
        struct posix_acl_xattr_header header;
        struct posix_acl_xattr_entry entries[5];
    } acl = {{POSIX_ACL_XATTR_VERSION},
             {{ACL_USER_OBJ, 6, ACL_UNDEFINED_ID},
              {ACL_USER, 4, 1000},
              {ACL_GROUP_OBJ, 4, ACL_UNDEFINED_ID},
              {ACL_MASK, 4, ACL_UNDEFINED_ID},
              {ACL_OTHER, 4, ACL_UNDEFINED_ID}}};
    static const struct vfs_cap_data capability = {
        VFS_CAP_REVISION_2 | VFS_CAP_FLAGS_EFFECTIVE, {{1 << CAP_NET_RAW, 0}, {0, 0}}};
    int flags;
    set_attribute(fd, "user.one", "first", 5);
    set_attribute(fd, "user.two", "\0second", 7);
    set_attribute(fd, "trusted.three", "", 0);
    set_attribute(fd, XATTR_NAME_POSIX_ACL_ACCESS, &acl, sizeof acl);
    set_attribute(fd, XATTR_NAME_CAPS, &capability, sizeof capability);
    must("flags", ioctl(fd, FS_IOC_GETFLAGS, &flags));
    flags |= FS_NODUMP_FL;
    must("flags", ioctl(fd, FS_IOC_SETFLAGS, &flags));
}

static void set_time(int tree, const struct entry *entry)
{
    const struct timespec time = {LONG_AGO + (entry - entries), 123456789}, times[2] = {time, time};
    must(entry->name, utimensat(tree, entry->name, times, AT_SYMLINK_NOFOLLOW));
}

static void make_file(int tree, const struct entry *entry)
{
    int fd = openat(tree, entry->name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    must(entry->name, fd);
    fill(fd, entry);
    must(entry->name, fchown(fd, entry->uid, entry->gid));
    must(entry->name, fchmod(fd, entry->mode));
    if (!strcmp(entry->name, "attributes"))
        set_attributes(fd);
    must(entry->name, close(fd));
}

/* Makes one tree; its shared files are links of those of `pristine`, if there is one. `path` is its absolute path. */
static void make_tree(int tree, int pristine, const char *path)
{
    char target[2 * PATH_MAX];
    for (const struct entry *entry = entries; entry < entries + ENTRIES; entry++) {
        bool own = entry->kind == PRIVATE || pristine < 0;
        switch (entry->kind) {
        case DIRECTORY:
            must(entry->name, mkdirat(tree, entry->name, 0700));
            must(entry->name, fchmodat(tree, entry->name, entry->mode, 0));
            break;
        case SYMLINK:
            snprintf(target, sizeof target, "%s/%s", path, entry->target + 1);
            must(entry->name, symlinkat(*entry->target == '%' ? target : entry->target, tree, entry->name));
            break;
        case FIFO:
            must(entry->name, mknodat(tree, entry->name, S_IFIFO | entry->mode, 0));
            break;
        case SHARED:
        case PRIVATE:
        case LINK:
            if (!own)
                must(entry->name, linkat(pristine, entry->name, tree, entry->name, 0));
            else if (entry->kind == LINK && !without_pairs)
                must(entry->name, linkat(tree, entry->target, tree, entry->name, 0));
            else
                make_file(tree, entry);
            if (!own || (entry->kind == LINK && !without_pairs))
                continue;
            break;
        }
        set_time(tree, entry);
    }
    for (const struct entry *entry = entries; entry < entries + ENTRIES; entry++)
        if (entry->kind == DIRECTORY)
            set_time(tree, entry);
}

static int open_directory(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    must(path, fd);
    return fd;
}

static void protect(int tree, bool immutable)
{
    for (const struct entry *entry = entries; entry < entries + ENTRIES; entry++) {
        int fd, flags;
        if (entry->kind != SHARED && entry->kind != LINK)
            continue;
        fd = openat(tree, entry->name, O_RDONLY | O_CLOEXEC);
        must(entry->name, fd);
        must(entry->name, ioctl(fd, FS_IOC_GETFLAGS, &flags));
        flags = immutable ? flags | FS_IMMUTABLE_FL : flags & ~FS_IMMUTABLE_FL;
        must(entry->name, ioctl(fd, FS_IOC_SETFLAGS, &flags));
        close(fd);
    }
}

int make_fixture(const char *path)
{
    int tree;
    must(path, mkdir(path, 0755));
    tree = open_directory(path);
    make_tree(tree, -1, "");
    protect(tree, true);
    return 0;
}

static void make_trees(int pristine, int number, const char *path, const char *root)
{
    char top[PATH_MAX], base[PATH_MAX];
    if (!realpath(path, top) || !realpath(root, base))
        die(path);
    if (!strcmp(base, "/"))
        *base = '\0';
    if (strncmp(top, base, strlen(base)))
        die(root);
    for (int i = 0; i < number; i++) {
        char name[PATH_MAX + 16];
        int tree;
        snprintf(name, sizeof name, "%s/t%d", top, i);
        must(name, mkdir(name, 0755));
        tree = open_directory(name);
        make_tree(tree, pristine, name + strlen(base));
        close(tree);
    }
}

int make_farm(const char *pristine, int number, const char *path, const char *root)
{
    int source = open_directory(pristine);
    protect(source, false);
    make_trees(source, number, path, root);
    protect(source, true);
    return 0;
}

int make_copies(int number, const char *path, const char *root)
{
    make_trees(-1, number, path, root);
    return 0;
}

bool was_set(int64_t seconds) { return seconds < SET_BEFORE; }

static uint64_t hash(const void *bytes, size_t size, uint64_t state)
{
    for (const unsigned char *byte = bytes; size; byte++, size--)
        state = (state ^ *byte) * 0x100000001b3;
    return state;
}

#define EMPTY_HASH 0xcbf29ce484222325

static void describe_content(int fd)
{
    char buffer[65536];
    uint64_t state = EMPTY_HASH;
    ssize_t size;
    while ((size = read(fd, buffer, sizeof buffer)) > 0)
        state = hash(buffer, size, state);
    if (size < 0)
        printf(" %s", error_name(errno));
    else
        printf(" %016llx", (unsigned long long)state);
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void describe_xattrs(int fd)
{
    char names[4096], value[65536], *sorted[64];
    int number = 0;
    ssize_t size = flistxattr(fd, names, sizeof names);
    for (char *name = names; name < names + size && number < 64; name += strlen(name) + 1)
        sorted[number++] = name;
    qsort(sorted, number, sizeof *sorted, by_name);
    for (int i = 0; i < number; i++) {
        size = fgetxattr(fd, sorted[i], value, sizeof value);
        if (size >= 0)
            printf(" %s=%zd:%08x", sorted[i], size, (unsigned)hash(value, size, EMPTY_HASH));
    }
}

static void describe_flags(int fd, unsigned mask)
{
    static const struct {
        unsigned flag;
        char letter;
    } known[] = {{FS_IMMUTABLE_FL, 'i'}, {FS_APPEND_FL, 'a'}, {FS_NODUMP_FL, 'd'}, {FS_NOATIME_FL, 'A'},
                 {FS_SYNC_FL, 'S'}};
    unsigned flags;
    if (ioctl(fd, FS_IOC_GETFLAGS, &flags) || !(flags & mask))
        return;
    printf(" +");
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (flags & mask & known[i].flag)
            putchar(known[i].letter);
}

/* The flags that a program sees; the one that protects shared files is none of its business. */
#define SEEN_FLAGS (FS_APPEND_FL | FS_NODUMP_FL | FS_NOATIME_FL | FS_SYNC_FL)

static void describe_flagged(int dir, const char *path, const char *shown, unsigned flags)
{
    struct stat status;
    if (fstatat(dir, path, &status, AT_SYMLINK_NOFOLLOW)) {
        printf("%s %s", shown, error_name(errno));
        return;
    }
    printf("%s %06o %u:%u", shown, status.st_mode, status.st_uid, status.st_gid);
    if (was_set(status.st_mtim.tv_sec) && !(without_directory_times && S_ISDIR(status.st_mode)))
        printf(" %lld.%09ld", (long long)status.st_mtim.tv_sec, status.st_mtim.tv_nsec);
    else
        printf(" -");
    if (S_ISLNK(status.st_mode)) {
        char target[PATH_MAX];
        ssize_t size = readlinkat(dir, path, target, sizeof target);
        printf(" -> %.*s", (int)size, target);
    } else if (S_ISCHR(status.st_mode) || S_ISBLK(status.st_mode)) {
        printf(" %u,%u", major(status.st_rdev), minor(status.st_rdev));
    } else if (S_ISREG(status.st_mode)) {
        int fd = openat(dir, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        printf(" %lld", (long long)status.st_size);
        if (fd < 0) {
            printf(" %s", error_name(errno));
        } else {
            describe_content(fd);
            describe_xattrs(fd);
            describe_flags(fd, flags);
            close(fd);
        }
    }
}

void describe(int dir, const char *path, const char *shown)
{
    describe_flagged(dir, path, shown, SEEN_FLAGS);
    putchar('\n');
}

/* The names below a directory, as paths. */
struct names {
    char **paths;
    size_t used, room;
};

static void walk(int dir, const char *prefix, struct names *names)
{
    DIR *stream = fdopendir(dir);
    if (!stream)
        die(prefix);
    for (struct dirent *entry; (entry = readdir(stream));) {
        char *path;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        if (asprintf(&path, "%s%s%s", prefix, *prefix ? "/" : "", entry->d_name) < 0)
            die(prefix);
        if (names->used == names->room)
            names->paths = realloc(names->paths, (names->room = 2 * names->room + 64) * sizeof *names->paths);
        names->paths[names->used++] = path;
        if (entry->d_type == DT_DIR) {
            int below = openat(dirfd(stream), entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            must(path, below);
            walk(below, path, names);
        }
    }
    closedir(stream);
}

static struct names names_below(int dir)
{
    struct names names = {NULL, 0, 0};
    int copy = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    must(".", copy);
    walk(copy, "", &names);
    qsort(names.paths, names.used, sizeof *names.paths, by_name);
    return names;
}

static void forget(struct names names)
{
    for (size_t i = 0; i < names.used; i++)
        free(names.paths[i]);
    free(names.paths);
}

static void dump_below(int dir, unsigned flags)
{
    struct names names = names_below(dir);
    struct stat *seen = calloc(names.used + 1, sizeof *seen);
    for (size_t i = 0; i < names.used; i++) {
        describe_flagged(dir, names.paths[i], names.paths[i], flags);
        must(names.paths[i], fstatat(dir, names.paths[i], &seen[i], AT_SYMLINK_NOFOLLOW));
        for (size_t first = 0; first < i && !S_ISDIR(seen[i].st_mode); first++)
            if (seen[first].st_dev == seen[i].st_dev && seen[first].st_ino == seen[i].st_ino) {
                printf(" = %s", names.paths[first]);
                break;
            }
        putchar('\n');
    }
    free(seen);
    forget(names);
}

void dump(void) { dump_below(AT_FDCWD, SEEN_FLAGS); }

int dump_tree(const char *path, bool with_flags)
{
    dump_below(open_directory(path), SEEN_FLAGS | (with_flags ? FS_IMMUTABLE_FL : 0));
    return 0;
}

int dump_trees(int number, const char *path)
{
    int top = open_directory(path);
    for (int i = 0; i < number; i++) {
        char name[32];
        int tree;
        snprintf(name, sizeof name, "t%d", i);
        tree = openat(top, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        must(name, tree);
        puts(name);
        dump_below(tree, SEEN_FLAGS);
        close(tree);
    }
    close(top);
    return 0;
}

static bool is_immutable(int dir, const char *path)
{
    struct statx status;
    must(path, statx(dir, path, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &status));
    return status.stx_attributes & STATX_ATTR_IMMUTABLE;
}

/* Says which names below `path` are not protected though they are links of `pristine`, or the other way round, which
 * are ours to clean up, and with `all` which are no links any more. */
int check_shared(const char *pristine, const char *path, bool all)
{
    int source = open_directory(pristine), tree = open_directory(path), wrong = 0;
    struct names names = names_below(tree);
    struct stat originals[ENTRIES], status;
    for (size_t i = 0; i < ENTRIES; i++)
        must(entries[i].name, fstatat(source, entries[i].name, &originals[i], AT_SYMLINK_NOFOLLOW));
    for (size_t i = 0; i < names.used; i++) {
        const char *name = names.paths[i], *base = strrchr(name, '/');
        bool shared = false;
        must(name, fstatat(tree, name, &status, AT_SYMLINK_NOFOLLOW));
        for (size_t original = 0; original < ENTRIES; original++)
            shared |= S_ISREG(status.st_mode) && originals[original].st_ino == status.st_ino;
        if (shared != is_immutable(tree, name)) {
            printf("%s: %s\n", name, shared ? "shared, and not immutable" : "private, and immutable");
            wrong = 1;
        }
        if (!strncmp(base ? base + 1 : name, ".cow-", 5)) {
            printf("%s: litter\n", name);
            wrong = 1;
        }
    }
    for (size_t i = 0; i < ENTRIES; i++) {
        if (entries[i].kind != SHARED && entries[i].kind != LINK)
            continue;
        if (!is_immutable(source, entries[i].name)) {
            printf("%s: not immutable any more\n", entries[i].name);
            wrong = 1;
        }
        if (all && (fstatat(tree, entries[i].name, &status, AT_SYMLINK_NOFOLLOW)
                    || status.st_ino != originals[i].st_ino)) {
            printf("%s: copied without need\n", entries[i].name);
            wrong = 1;
        }
    }
    forget(names);
    return wrong;
}
