/* Operations by names of all kinds. */
#include "cowops.h"

#include <pthread.h>
#include <sys/mman.h>

/* Opens for appending by a name, then changes mode and size by it; looks at the file that it leads to. */
static void changed(int dir, const char *path, const char *seen)
{
    int fd = opened("append", sys(openat, dir, path, O_WRONLY | O_APPEND));
    if (fd >= 0) {
        count("write", write(fd, "changed\n", 8));
        close(fd);
    }
    step("chmod", sys(fchmodat, dir, path, 0640));
    look(seen);
}

OPERATION(by_descriptor_of_directory) { changed(open("d", O_RDONLY | O_DIRECTORY), "one", "d/one"); }
OPERATION(by_path_descriptor) { changed(open("d", O_PATH), "deep/three", "d/deep/three"); }
OPERATION(by_parents) { changed(open("d/deep", O_RDONLY), "../../d/./deep/..//one", "d/one"); }
OPERATION(by_dots) { changed(AT_FDCWD, "./d/../d/deep/../../file", "file"); }
OPERATION(by_symlink) { changed(AT_FDCWD, "link", "file"); look("link"); }
OPERATION(by_symlink_to_parent) { changed(AT_FDCWD, "d/up", "file"); look("d/up"); }
OPERATION(by_absolute_symlink) { changed(AT_FDCWD, "absolute", "file"); }
OPERATION(by_directory_symlink) { changed(AT_FDCWD, "dirlink/deep/three", "d/deep/three"); }
OPERATION(by_parent_of_symlink)
{
    changed(AT_FDCWD, "dirlink/../file", "file");
    changed(AT_FDCWD, "dirlink/up", "file");
}
OPERATION(by_magic_symlink) { changed(AT_FDCWD, "magic", "file"); }
OPERATION(by_working_directory) { changed(AT_FDCWD, "/proc/self/cwd/d/one", "d/one"); }
OPERATION(by_thread_directory) { changed(AT_FDCWD, "/proc/thread-self/cwd/d/one", "d/one"); }
OPERATION(by_absolute_path)
{
    char path[PATH_MAX];
    if (!getcwd(path, sizeof path - 10))
        die("getcwd");
    strcat(path, "/d/one");
    changed(99, path, "d/one");
}
OPERATION(by_root)
{
    char path[PATH_MAX] = "/proc/self/root";
    if (!getcwd(path + strlen(path), sizeof path - 40))
        die("getcwd");
    strcat(path, "/d/one");
    changed(AT_FDCWD, path, "d/one");
}
OPERATION(by_symlink_made_now)
{
    step("symlink", symlink("../d/one", "void/made"));
    changed(AT_FDCWD, "void/made", "d/one");
}
OPERATION(by_file_descriptor_as_directory)
{
    int fd = reader("file", 0, 0);
    changed(fd, "one", "file");
    changed(99, "file", "file");
    changed(AT_FDCWD, "file/one", "file");
}

/* By what names an open file. */
static void reopened(const char *form, int flags)
{
    char path[64];
    int fd = open("file", flags);
    snprintf(path, sizeof path, form, fd);
    changed(AT_FDCWD, path, "file");
    step("truncate", wide(truncate, path, LONG64(20)));
    look("file");
    agree(fd, "file");
    opened("no follow", open(path, O_WRONLY | O_NOFOLLOW));
}
OPERATION(by_proc_self) { reopened("/proc/self/fd/%d", O_RDONLY); }
OPERATION(by_proc_self_of_path) { reopened("/proc/self/fd/%d", O_PATH); }
OPERATION(by_proc_self_of_writer) { reopened("/proc/self/fd/%d", O_WRONLY); }
OPERATION(by_dev_fd) { reopened("/dev/fd/%d", O_RDONLY); }
OPERATION(by_thread) { reopened("/proc/thread-self/fd/%d", O_RDONLY); }
OPERATION(by_proc_self_dots) { reopened("/proc/self/../self/fd/../fd/%d", O_RDONLY); }
OPERATION(by_process_number)
{
    char path[64];
    int fd = reader("file", 0, 0);
    snprintf(path, sizeof path, "/proc/%d/fd/%d", getpid(), fd);
    changed(AT_FDCWD, path, "file");
}
OPERATION(by_descriptor_of_parent)
{
    char path[64];
    int fd = reader("file", 0, 0);
    snprintf(path, sizeof path, "/proc/%d/fd/%d", getpid(), fd);
    IN_CHILD {
        close(fd);
        changed(AT_FDCWD, path, "file");
    }
    agree(fd, "file");
    read_on(fd);
}
OPERATION(by_directory_descriptor_path)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d/one", open("d", O_RDONLY));
    changed(AT_FDCWD, path, "d/one");
}
OPERATION(relative_in_proc)
{
    char name[16];
    int fds = open("/proc/self/fd", O_RDONLY | O_DIRECTORY);
    snprintf(name, sizeof name, "%d", reader("file", 0, 0));
    changed(fds, name, "file");
}
OPERATION(reopened_after_unlink)
{
    char path[64];
    int fd = reader("file", 0, 5), writer;
    step("unlink", unlink("file"));
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    writer = opened("append", open(path, O_WRONLY | O_APPEND));
    if (writer >= 0)
        count("write", write(writer, "changed\n", 8));
    step("chmod", chmod(path, 0600));
    step("truncate", truncate(path, 100));
    read_on(fd);
    describe(AT_FDCWD, path, "link of proc");
    look("file");
}
OPERATION(reopened_after_rename)
{
    char path[64];
    int fd = reader("file", 0, 5);
    step("rename", rename("file", "void/renamed"));
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    changed(AT_FDCWD, path, "void/renamed");
    agree(fd, "void/renamed");
}
OPERATION(name_of_descriptor)
{
    char path[64], name[PATH_MAX];
    int fd = reader("d/one", 0, 5);
    ssize_t size;
    step("fchmod", fchmod(fd, 0600));
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    size = readlink(path, name, sizeof name);
    note("%.*s", (int)size, name);
    fd = open("d/two", O_RDWR);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    size = readlink(path, name, sizeof name);
    note("%.*s", (int)size, name);
}

static void *in_thread(void *path)
{
    changed(AT_FDCWD, path, "file");
    return NULL;
}
OPERATION(by_second_thread)
{
    char path[64];
    pthread_t thread;
    snprintf(path, sizeof path, "/proc/thread-self/fd/%d", reader("file", 0, 0));
    pthread_create(&thread, NULL, in_thread, path);
    pthread_join(thread, NULL);
}
static void *with_own_directory(void *path)
{
    if (sys(unshare, CLONE_FS) || chdir("d"))
        die("unshare");
    changed(AT_FDCWD, path, "one");
    return NULL;
}
OPERATION(thread_with_own_directory)
{
    pthread_t thread;
    pthread_create(&thread, NULL, with_own_directory, "deep/../one");
    pthread_join(thread, NULL);
    changed(AT_FDCWD, "file", "file");
}
static void *with_own_descriptors(void *argument)
{
    (void)argument;
    int fd;
    if (sys(unshare, CLONE_FILES))
        die("unshare");
    fd = reader("file", 0, 3);
    step("fchmod", fchmod(fd, 0600));
    agree(fd, "file");
    read_on(fd);
    opened("write", open("other", O_WRONLY));
    return NULL;
}
OPERATION(thread_with_own_descriptors)
{
    pthread_t thread;
    pthread_create(&thread, NULL, with_own_descriptors, NULL);
    pthread_join(thread, NULL);
    opened("write", open("program", O_WRONLY));
}

/* Slashes, nothing, too much, and what is no path. */

HARMLESS(trailing_slash)
{
    changed(AT_FDCWD, "file/", "file");
    changed(AT_FDCWD, "link/", "file");
    changed(AT_FDCWD, "file/.", "file");
    changed(AT_FDCWD, "file/..", "file");
    changed(AT_FDCWD, "missing/", "missing");
    opened("create", open("file/", O_WRONLY | O_CREAT, 0600));
    opened("create", open("new/", O_WRONLY | O_CREAT, 0600));
    step("unlink", unlink("file/"));
    step("rmdir", rmdir("file/"));
    step("rename", rename("file/", "new"));
    step("rename", rename("file", "new/"));
    step("rename", rename("own", "file/"));
    step("rename", rename("file", "d/"));
    step("link", link("file/", "new"));
    step("link", link("file", "new/"));
    step("unlink", unlink("dirlink/"));
    step("rmdir", rmdir("dirlink/"));
    step("truncate", truncate("file/", 0));
}
OPERATION(leading_slashes)
{
    char path[PATH_MAX] = "///";
    if (!getcwd(path + 2, sizeof path - 40))
        die("getcwd");
    strcat(path, "//d///one");
    changed(AT_FDCWD, path, "d/one");
}
HARMLESS(no_path)
{
    changed(AT_FDCWD, "", "file");
    step("unlink", unlink(""));
    step("rename", rename("", "new"));
    step("rename", rename("file", ""));
    step("link", link("", "new"));
    step("chown", chown("", 1, 1));
    step("utimensat", sys_utimensat(AT_FDCWD, "", NULL, 0));
    step("open", open("", O_WRONLY | O_CREAT, 0600));
}
OPERATION(bad_pointer)
{
    char *bad = (char *)8;
    step("open", sys(openat, AT_FDCWD, bad, O_WRONLY));
    step("open", sys(openat, AT_FDCWD, NULL, O_RDWR | O_TRUNC));
    step("openat2", sys(openat2, AT_FDCWD, "file", bad, (size_t)24));
    step("chmod", sys(fchmodat, AT_FDCWD, bad, 0600));
    step("fchmodat2", sys(fchmodat2, AT_FDCWD, bad, 0600, 0));
    step("chown", sys(fchownat, AT_FDCWD, bad, 1, 1, 0));
    step("utimensat", sys_utimensat(AT_FDCWD, "file", (void *)bad, 0));
    step("setxattr", sys(setxattr, "file", bad, "x", (size_t)1, 0));
    step("setxattr", sys(setxattr, "file", "user.one", bad, (size_t)1, 0));
    step("removexattr", sys(removexattr, "file", bad));
    step("unlink", sys(unlinkat, AT_FDCWD, bad, 0));
    step("rename", sys(renameat2, AT_FDCWD, bad, AT_FDCWD, "new", 0));
    step("rename", sys(renameat2, AT_FDCWD, "file", AT_FDCWD, bad, 0));
    step("link", sys(linkat, AT_FDCWD, bad, AT_FDCWD, "new", 0));
    step("link", sys(linkat, AT_FDCWD, "file", AT_FDCWD, bad, 0));
    step("getflags", ioctl(reader("file", 0, 0), FS_IOC_SETFLAGS, bad));
}
OPERATION(path_at_end_of_memory)
{
    long page = sysconf(_SC_PAGESIZE);
    char *memory = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *path;
    if (memory == MAP_FAILED || munmap(memory + page, page))
        die("mmap");
    path = memory + page - strlen("d/one") - 1;
    strcpy(path, "d/one");
    mprotect(memory, page, PROT_READ);
    changed(AT_FDCWD, path, "d/one");
    mprotect(memory, page, PROT_READ | PROT_WRITE);
    path[5] = 'x';
    step("no end", sys(openat, AT_FDCWD, path, O_WRONLY));
    step("no end", sys(unlinkat, AT_FDCWD, path, 0));
}
OPERATION(long_paths)
{
    char path[PATH_MAX + 10];
    memset(path, '/', sizeof path);
    for (int i = 0; i < PATH_MAX - 6; i += 2)
        path[i] = '.';
    strcpy(path + PATH_MAX - 6, "/file"); /* as long as may be: 4095 bytes */
    note("%zu bytes", strlen(path));
    changed(AT_FDCWD, path, "file");
    memmove(path + 2, path, strlen(path) + 1);
    changed(AT_FDCWD, path, "file");
    memset(path, 'x', 300);
    path[255] = '\0';
    changed(AT_FDCWD, path, "file");
    path[255] = 'x';
    path[256] = '\0';
    changed(AT_FDCWD, path, "file");
    step("unlink", unlink(path));
}
OPERATION(long_chain_of_directories)
{
    char name[128];
    int top = open(".", O_RDONLY | O_DIRECTORY);
    memset(name, 'n', 120);
    name[120] = '\0';
    for (int depth = 0; depth < 40; depth++)
        if (mkdir(name, 0755) || chdir(name))
            die("mkdir");
    step("rename", renameat(top, "file", AT_FDCWD, "file"));
    changed(AT_FDCWD, "file", "file");
    step("rename", renameat(AT_FDCWD, "file", top, "file"));
    for (int depth = 0; depth < 40; depth++)
        if (chdir("..") || rmdir(name))
            die("rmdir");
    changed(AT_FDCWD, "d/one", "d/one");
}
OPERATION(odd_names)
{
    const char *names[] = {"a\nb", "\xff\xfe", " ", "-", "\\", "a (deleted)", "...", "\"'%s"};
    step("rename", rename("file", names[0]));
    for (size_t i = 0; i + 1 < sizeof names / sizeof *names; i++) {
        int fd = open(names[i], O_RDONLY);
        step("rename", rename(names[i], names[i + 1]));
        step("fchmod", fchmod(fd, 0600 + i));
        changed(AT_FDCWD, names[i + 1], "file");
        agree(fd, names[i + 1]);
        close(fd);
        step("link", link("other", names[i]));
    }
}
OPERATION(deleted_working_directory)
{
    int top = open(".", O_RDONLY | O_DIRECTORY);
    if (chdir("void"))
        die("void");
    step("rmdir", rmdir("../void"));
    step("create", open("new", O_WRONLY | O_CREAT, 0600));
    changed(AT_FDCWD, "../file", "../file");
    changed(top, "d/one", "../d/one");
    step("rename", rename("../other", "other"));
    step("rename", rename("../other", "../another"));
    step("link", link("../file", "linked"));
    if (fchdir(top))
        die("fchdir");
}
OPERATION(moved_working_directory)
{
    int top = open(".", O_RDONLY | O_DIRECTORY);
    if (chdir("d/deep"))
        die("d/deep");
    step("rename", rename("../../d", "../../void/moved"));
    changed(AT_FDCWD, "three", "three");
    changed(AT_FDCWD, "../one", "../one");
    step("rename", rename("three", "../three"));
    if (fchdir(top))
        die("fchdir");
}
