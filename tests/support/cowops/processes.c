/* Operations of other processes than a plain one of root's: unprivileged ones, with a root or signals of their own,
 * and many at once. */
#include "cowops.h"

#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/fsuid.h>
#include <sys/inotify.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/xattr.h>

/* All that may be refused, on one name. */
static void try_all(const char *path)
{
    static const struct time64 times[2] = {{1000001000, 5}, {1000002000, 7}};
    char name[64];
    note("%s", path);
    opened(" write", open(path, O_WRONLY));
    opened(" append", open(path, O_RDWR | O_APPEND | O_CREAT, 0600));
    opened(" no access time", open(path, O_RDONLY | O_NOATIME));
    opened(" truncate", open(path, O_RDONLY | O_TRUNC));
    step(" truncate", truncate(path, 10));
    step(" times", sys_utimensat(AT_FDCWD, path, times, 0));
    step(" now", sys_utimensat(AT_FDCWD, path, NULL, 0));
    step(" setxattr", setxattr(path, "user.new", "x", 1, 0));
    step(" trusted", setxattr(path, "trusted.new", "x", 1, 0));
    step(" chown", chown(path, 5, -1));
    step(" chgrp", chown(path, -1, NOBODY));
    step(" chmod", chmod(path, 0604));
    snprintf(name, sizeof name, "%s-linked", path);
    step(" link", link(path, name));
    snprintf(name, sizeof name, "%s-renamed", path);
    step(" rename", rename(path, name));
    step(" unlink", unlink(path));
    step(" unlink", unlink(name));
}
static void nobody_tries(const char *path)
{
    IN_CHILD {
        become_nobody();
        try_all(path);
    }
}
HARMLESS(nobody_on_file)
{
    nobody_tries("file");
    nobody_tries("d/two");
    nobody_tries("setid");
    nobody_tries("own");
}
HARMLESS(nobody_changes_nothing)
{
    char bytes[8];
    IN_CHILD {
        become_nobody();
        int place = open("d/two", O_PATH);
        step("place", sys(fchownat, place, "", -1, -1, AT_EMPTY_PATH));
        count("read", read(place, bytes, sizeof bytes));
        step("another's", chown("d/two", -1, -1));
        step("anybody's", chown("file", -1, -1));
        step("set-id", chown("setid", -1, -1));
        step("modes", chmod("file", 0644));
    }
}
OPERATION(place_of_unreadable)
{
    char bytes[8];
    IN_CHILD {
        become_nobody();
        int place = open("unreadable", O_PATH);
        step("mode", chmod("unreadable", 0220));
        count("read", read(place, bytes, sizeof bytes));
    }
    look("unreadable");
}
OPERATION(nobody_on_everyones) { nobody_tries("everyones"); look("everyones"); }
OPERATION(nobody_on_nobodys) { nobody_tries("nobodys"); look("nobodys"); }
OPERATION(nobody_on_common) { nobody_tries("common/file"); look("common/file"); }
HARMLESS(nobody_on_sticky) { nobody_tries("sticky/file"); look("sticky/file"); }
HARMLESS(nobody_in_closed_directory)
{
    chmod("d", 0700);
    nobody_tries("d/one");
    nobody_tries("dirlink/deep/three");
}
HARMLESS(nobody_renames_over)
{
    IN_CHILD {
        become_nobody();
        step("over sticky", rename("nobodys", "sticky/file"));
        step("over file", rename("nobodys", "file"));
        step("from sticky", rename("sticky/file", "common/new"));
        step("own from sticky", rename("sticky/nobodys", "sticky/file"));
        step("exchange", sys(renameat2, AT_FDCWD, "common/file", AT_FDCWD, "sticky/file", RENAME_EXCHANGE));
        step("link", link("file", "common/linked"));
        step("link", link("setid", "common/linked"));
    }
}
OPERATION(nobody_on_own_in_sticky) { nobody_tries("sticky/nobodys"); look("sticky/nobodys"); }
OPERATION(nobody_links)
{
    IN_CHILD {
        become_nobody();
        step("own", link("nobodys", "common/linked"));
        step("everyone's", link("everyones", "common/too"));
        step("another's", link("file", "common/three"));
    }
}
OPERATION(nobody_renames_own_over)
{
    IN_CHILD {
        become_nobody();
        step("over", rename("sticky/nobodys", "common/file"));
        step("write", open("common/file", O_WRONLY));
        step("exchange", sys(renameat2, AT_FDCWD, "common/file", AT_FDCWD, "sticky/file", RENAME_EXCHANGE));
    }
    look("common/file");
}
OPERATION(nobody_renames_within_common)
{
    IN_CHILD {
        become_nobody();
        step("rename", rename("common/file", "common/new"));
        opened("create", open("common/mine", O_WRONLY | O_CREAT, 0600));
        step("over", rename("common/mine", "common/new"));
    }
    look("common/new");
}
OPERATION(nobody_with_descriptor)
{
    int fd = reader("file", 0, 10), own = reader("nobodys", 0, 10);
    IN_CHILD {
        become_nobody();
        step("fchmod", fchmod(fd, 0666));
        step("fchown", fchown(fd, NOBODY, NOBODY));
        step("futimens", futimens(fd, NULL));
        step("fsetxattr", fsetxattr(fd, "user.new", "x", 1, 0));
        step("own", fchmod(own, 0600));
        step("own", fsetxattr(own, "user.new", "x", 1, 0));
        agree(own, "nobodys");
    }
    look("file");
    look("nobodys");
    agree(own, "nobodys");
}
OPERATION(nobody_with_open_writer)
{
    int fd = opened("open", open("setid", O_WRONLY));
    IN_CHILD {
        become_nobody();
        count("write", write(fd, "changed\n", 8));
    }
    look("setid"); /* not set-id any more */
}
OPERATION(effective_nobody)
{
    if (setresuid(-1, NOBODY, -1))
        die("setresuid");
    try_all("common/file");
    step("open", open("file", O_WRONLY));
    if (setresuid(-1, 0, -1))
        die("setresuid");
    step("open", open("file", O_WRONLY));
}
OPERATION(file_system_user)
{
    setfsuid(1000);
    opened("own", open("other", O_WRONLY));
    opened("another's", open("file", O_WRONLY));
    step("chmod", chmod("other", 0600));
    setfsuid(0);
    look("other");
}
OPERATION(member_of_group)
{
    IN_CHILD {
        if (setresgid(1000, 1000, 1000) || setresuid(2000, 2000, 2000))
            die("group");
        opened("read", open("other", O_RDONLY));
        opened("write", open("other", O_WRONLY));
        step("link", link("setid", "common/linked"));
    }
    chmod("other", 0660);
    IN_CHILD {
        if (setresgid(1000, 1000, 1000) || setresuid(2000, 2000, 2000))
            die("group");
        opened("write", open("other", O_WRONLY));
        step("chgrp", chown("other", -1, 1000));
    }
    look("other");
}

static void drop(int capability)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    if (sys(capget, &header, data))
        die("capget");
    data[capability / 32].effective &= ~(1u << capability % 32);
    data[capability / 32].permitted &= ~(1u << capability % 32);
    if (sys(capset, &header, data))
        die("capset");
}
OPERATION(without_override)
{
    IN_CHILD {
        drop(CAP_DAC_OVERRIDE);
        try_all("other");
    }
    look("other");
}
OPERATION(without_fowner) { IN_CHILD { drop(CAP_FOWNER); try_all("other"); try_all("sticky/file"); } }
OPERATION(without_chown) { IN_CHILD { drop(CAP_CHOWN); try_all("file"); } }
OPERATION(without_fsetid)
{
    IN_CHILD {
        drop(CAP_FSETID);
        opened("truncate", open("setid", O_WRONLY | O_TRUNC));
        look("setid");
        step("chmod", chmod("setid", 06755));
        look("setid");
    }
}
OPERATION(without_immutable) { IN_CHILD { drop(CAP_LINUX_IMMUTABLE); try_all("file"); } }
OPERATION(without_admin) { IN_CHILD { drop(CAP_SYS_ADMIN); try_all("file"); } }

OPERATION(chrooted)
{
    IN_CHILD {
        if (chroot("."))
            die("chroot");
        step("open", open("rooted", O_WRONLY));
        step("chmod", chmod("/d/one", 0600));
        step("rename", rename("/../d/two", "/../../file"));
        step("unlink", unlink("/../other"));
        look("d/one");
    }
}
OPERATION(with_own_mounts)
{
    IN_CHILD {
        if (unshare(CLONE_NEWNS)) {
            step("unshare", -1);
            end_child();
        }
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
        step("bind", mount("d", "void", NULL, MS_BIND, NULL));
        opened("append", open("void/one", O_WRONLY | O_APPEND));
        step("truncate", truncate("void/one", 10));
        step("chmod", chmod("void/two", 0644));
        step("rename", rename("void/deep/three", "void/three"));
        step("across", rename("void/three", "three"));
        step("across", link("void/three", "three"));
        step("unlink", unlink("void/pair"));
        step("bind", mount("file", "own", NULL, MS_BIND, NULL));
        step("truncate", truncate("own", 20));
        step("rename", rename("own", "new"));
        step("bind", mount("d/deep", "d/deep", NULL, MS_BIND, NULL));
        step("read-only", mount(NULL, "d/deep", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL));
        step("write", open("d/deep/own", O_WRONLY));
        step("write", open("d/three", O_WRONLY));
    }
}
OPERATION(read_only_mount)
{
    IN_CHILD {
        if (unshare(CLONE_NEWNS) || mount("d", "void", NULL, MS_BIND, NULL)) {
            step("unshare", -1);
            end_child();
        }
        step("read-only", mount(NULL, "void", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL));
        try_all("void/one");
        step("fchmod", fchmod(reader("void/one", 0, 0), 0600));
    }
}
OPERATION(in_user_namespace)
{
    IN_CHILD {
        int fd;
        if (unshare(CLONE_NEWUSER)) {
            step("unshare", -1);
            end_child();
        }
        fd = open("/proc/self/setgroups", O_WRONLY);
        step("groups", write(fd, "deny", 4));
        fd = open("/proc/self/uid_map", O_WRONLY);
        step("users", write(fd, "0 0 1", 5));
        fd = open("/proc/self/gid_map", O_WRONLY);
        step("groups", write(fd, "0 0 1", 5));
        try_all("file");
        try_all("other");
        step("own mounts", unshare(CLONE_NEWNS));
        step("open", open("d/one", O_WRONLY));
    }
}

OPERATION(limit_of_size)
{
    IN_CHILD {
        struct rlimit limit = {1000, 1000};
        signal(SIGXFSZ, SIG_IGN);
        if (setrlimit(RLIMIT_FSIZE, &limit))
            die("setrlimit");
        step("longer", truncate("file", 2000));
        step("shorter", truncate("file", 300));
        step("other", chmod("other", 0600)); /* larger than the limit */
        count("write", write(open("file", O_WRONLY | O_APPEND), "x", 1));
        step("open", open("sparse", O_WRONLY));
    }
}
OPERATION(limit_of_descriptors)
{
    IN_CHILD {
        int fd = reader("file", 0, 0);
        struct rlimit limit = {fd + 1, fd + 1};
        if (setrlimit(RLIMIT_NOFILE, &limit))
            die("setrlimit");
        step("write", open("other", O_WRONLY));
        step("truncate", open("file", O_WRONLY | O_TRUNC));
        step("fchmod", fchmod(fd, 0600));
        step("chmod", chmod("d/one", 0600));
        step("rename", rename("d/one", "d/two"));
        close(fd);
        step("write", open("other", O_WRONLY));
    }
}

/* Signals and many at once. */

static const struct itimerval often = {{0, 200}, {0, 200}}, never = {{0, 0}, {0, 0}};

/* Not for ever: what is begun again after each signal has to come to an end. */
static void interrupt(int number)
{
    static int signals;
    (void)number;
    if (++signals == 3000)
        setitimer(ITIMER_REAL, &never, NULL);
}

static void storm(int flags)
{
    static const char *const names[] = {"file",  "other",      "empty",     "program",
                                        "setid", "attributes", "everyones", "nobodys"};
    struct sigaction action = {.sa_handler = interrupt, .sa_flags = flags};
    char name[64];
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(name, sizeof name, "d/%s-linked", names[i]);
        step("link", link(names[i], name));
        snprintf(name, sizeof name, "d/%s", names[i]);
        step("rename", rename(names[i], name));
        step("write", close(open(name, O_WRONLY | O_APPEND)));
        step("chmod", chmod(name, 0600));
        step("unlink", unlink(name));
    }
    step("write", close(open("d/one", O_RDWR)));
    step("rename over", rename("d/two", "d/deep/three"));
    step("rename over", rename("d/one", "d/deep/three"));
    step("unlink", unlink("common/file"));
    step("unlink", unlink("sticky/file"));
    setitimer(ITIMER_REAL, &never, NULL);
}
OPERATION(signals) { storm(0); }
OPERATION(signals_restarting) { storm(SA_RESTART); }
OPERATION(killed_while_at_it)
{
    for (int i = 0; i < 10; i++) {
        pid_t child = fork();
        if (!child)
            for (;;) {
                close(open("file", O_WRONLY | O_APPEND));
                rename("d/one", "d/uno");
                rename("d/uno", "d/one");
                chmod("other", 0600);
            }
        usleep(300 * i);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    rename("d/uno", "d/one");
    chmod("other", 0600);
    close(open("file", O_WRONLY | O_APPEND));
    look("file");
    look("d/one");
    look("other");
}

static void *append_lines(void *path)
{
    for (int i = 0; i < 20; i++) {
        int fd = open(path, O_WRONLY | O_APPEND);
        if (fd < 0 || write(fd, "a line\n", 7) != 7)
            step("append", -1);
        close(fd);
    }
    return NULL;
}
OPERATION(threads_at_once)
{
    pthread_t threads[8];
    for (int i = 0; i < 8; i++)
        pthread_create(&threads[i], NULL, append_lines, i % 2 ? "d/up" : "file");
    for (int i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    look("file");
}
OPERATION(processes_at_once)
{
    fflush(stdout);
    for (int i = 0; i < 8; i++)
        if (!fork()) {
            append_lines("file");
            append_lines(i % 2 ? "pair" : "d/pair");
            end_child();
        }
    while (wait(NULL) > 0)
        ;
    look("file");
    look("pair");
    look("d/pair");
}
OPERATION(unlinked_at_once)
{
    int unlinked = 0;
    fflush(stdout);
    for (int i = 0; i < 8; i++)
        if (!fork())
            _exit(unlink("file") ? 0 : 1);
    for (int i = 0, status; i < 8; i++)
        if (wait(&status) > 0)
            unlinked += WEXITSTATUS(status);
    note("%d unlinked it", unlinked);
}
OPERATION(renamed_at_once)
{
    fflush(stdout);
    for (int i = 0; i < 4; i++)
        if (!fork()) {
            for (int j = 0; j < 25; j++)
                if (sys(renameat2, AT_FDCWD, "file", AT_FDCWD, "d/one", RENAME_EXCHANGE))
                    step("exchange", -1);
            end_child();
        }
    while (wait(NULL) > 0)
        ;
    look("file");
    look("d/one");
}

/* Programs */

extern char **environ;

static void spawned(const char *command, const char *path)
{
    pid_t child;
    int status;
    char *words[] = {"cowops", (char *)command, (char *)path, NULL};
    fflush(stdout);
    if (posix_spawn(&child, "/proc/self/exe", NULL, NULL, words, environ) || waitpid(child, &status, 0) != child)
        die("spawn");
    note("exit %d", status);
}
OPERATION(spawned_program) { spawned("append", "file"); look("file"); }
OPERATION(spawned_with_redirection)
{
    posix_spawn_file_actions_t actions;
    char *words[] = {"cowops", "list", NULL};
    pid_t child;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, "file", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    step("spawn", posix_spawn(&child, "/proc/self/exe", &actions, NULL, words, environ) ? -1 : 0);
    waitpid(child, NULL, 0);
    look("file");
}
OPERATION(open_before_exec)
{
    char *words[] = {"cowops", "append", "/proc/self/fd/0", NULL};
    IN_CHILD {
        dup2(opened("open", open("file", O_WRONLY)), 0);
        execv("/proc/self/exe", words);
    }
    look("file");
}
OPERATION(child_of_vfork)
{
    pid_t child = vfork();
    if (!child)
        _exit(sys(openat, AT_FDCWD, "file", O_WRONLY | O_TRUNC) < 0 ? errno : 0);
    int status;
    waitpid(child, &status, 0);
    note("exit %d", WEXITSTATUS(status));
    look("file");
}
OPERATION(orphan)
{
    int ends[2];
    char byte;
    if (pipe(ends))
        die("pipe");
    fflush(stdout);
    if (!fork()) {
        if (!fork()) {
            close(ends[0]);
            setsid();
            usleep(10000);
            append_lines("file");
            step("chmod", chmod("d/one", 0600));
            end_child();
        }
        _exit(0);
    }
    wait(NULL);
    close(ends[1]);
    count("ended", read(ends[0], &byte, 1));
    look("file");
}

static void copy_program(const char *path, mode_t mode)
{
    char buffer[65536];
    ssize_t size;
    int from = open("/proc/self/exe", O_RDONLY), into = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0755);
    if (from < 0 || into < 0)
        die(path);
    while ((size = read(from, buffer, sizeof buffer)) > 0)
        if (write(into, buffer, size) != size)
            die(path);
    if (fchmod(into, mode))
        die(path);
    close(from);
    close(into);
}
OPERATION(set_id_program)
{
    char *words[] = {"suid", "append", "file", NULL};
    copy_program("suid", 04755);
    note("no new privileges: %d", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    IN_CHILD {
        become_nobody();
        step("write", open("file", O_WRONLY));
        execv("./suid", words);
    }
    step("unlink", unlink("suid"));
    look("file");
}
OPERATION(written_while_it_runs)
{
    char *words[] = {"program", NULL}, ready;
    int ends[2];
    pid_t child;
    if (pipe(ends))
        die("pipe");
    child = fork();
    if (!child) {
        dup2(ends[1], 1);
        close(ends[0]);
        close(ends[1]);
        execv("./program", words);
        _exit(1);
    }
    close(ends[1]);
    count("runs", read(ends[0], &ready, 1));
    step("write", open("program", O_WRONLY));
    step("truncate", truncate("program", 0));
    step("chmod", chmod("program", 0700));
    step("unlink", unlink("program"));
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}
OPERATION(with_own_filter)
{
    struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {1, &allow};
    IN_CHILD {
        step("filter", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
        step("filter", prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
        step("write", open("file", O_WRONLY));
        step("unlink", unlink("other"));
    }
}
OPERATION(with_own_listener)
{
    struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {1, &allow};
    IN_CHILD {
        step("listener", sys(seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program));
        step("write", open("file", O_WRONLY));
    }
}
OPERATION(not_dumpable)
{
    step("not dumpable", prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
    step("write", open("file", O_WRONLY));
    step("fchmod", fchmod(reader("other", 0, 0), 0600));
    step("unlink", unlink("d/one"));
}
OPERATION(watched)
{
    char events[4096];
    int watch = inotify_init1(IN_NONBLOCK), fd;
    ssize_t size;
    step("watch", inotify_add_watch(watch, "file", IN_MODIFY | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF) < 0 ? -1 : 0);
    fd = open("file", O_WRONLY);
    count("write", write(fd, "x", 1));
    step("chmod", chmod("file", 0600));
    size = read(watch, events, sizeof events);
    for (char *at = events; size > 0 && at < events + size;) {
        struct inotify_event *event = (void *)at;
        note("event %#x", event->mask);
        at += sizeof *event + event->len;
    }
}
OPERATION(directory_watched)
{
    char events[4096];
    int watch = inotify_init1(IN_NONBLOCK), fd;
    ssize_t size;
    step("watch", inotify_add_watch(watch, "d", IN_CREATE | IN_DELETE | IN_MOVE | IN_MODIFY | IN_ATTRIB) < 0 ? -1 : 0);
    fd = open("d/one", O_WRONLY);
    count("write", write(fd, "x", 1));
    step("chmod", chmod("d/two", 0644));
    step("rename", rename("d/two", "d/new"));
    step("unlink", unlink("d/pair"));
    size = read(watch, events, sizeof events);
    for (char *at = events; size > 0 && at < events + size;) {
        struct inotify_event *event = (void *)at;
        note("event %#x %s", event->mask, event->len ? event->name : "");
        at += sizeof *event + event->len;
    }
}

#if defined(__x86_64__) && !defined(__ILP32__)
#include <sys/mman.h>

/* A system call as a 32-bit program makes it, from a 64-bit one. */
static long call32(long number, long first, long second, long third)
{
    long result;
    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "a"(number), "b"(first), "c"(second), "d"(third)
                     : "memory", "r8", "r9", "r10", "r11");
    if (result >= 0 || result < -4095)
        return result;
    errno = -result;
    return -1;
}
OPERATION(calls_of_32_bits)
{
    char *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    if (low == MAP_FAILED)
        die("mmap");
    strcpy(low, "file");
    strcpy(low + 16, "d/one");
    opened("open", call32(5, (long)low, O_WRONLY | O_TRUNC, 0));
    step("chmod", call32(15, (long)(low + 16), 0600, 0));
    step("truncate", call32(92, (long)(low + 16), 100, 0));
    strcpy(low + 32, "other");
    step("rename", call32(38, (long)(low + 32), (long)low, 0));
    strcpy(low + 48, "d/two");
    step("unlink", call32(10, (long)(low + 48), 0, 0));
    look("file");
    look("d/one");
}
#endif
