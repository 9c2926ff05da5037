/* A guest as containers have it: mounts and processes of its own, and a root that is no chroot. */
#include "cowops.h"

#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>

static void must(const char *what, long result)
{
    if (result < 0)
        die(what);
}

static int outcome(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status); }

/* The first process of the guest: when it ends, so do all others. */
static int first_process(const char *root, char **command)
{
    pid_t child, ended;
    int status;
    must("prctl", prctl(PR_SET_PDEATHSIG, SIGKILL));
    must("/", mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
    must(root, mount(root, root, NULL, MS_BIND, NULL));
    must(root, chdir(root));
    must("pivot_root", sys(pivot_root, ".", "."));
    must("umount", umount2(".", MNT_DETACH));
    must("proc", mount("proc", "/proc", "proc", 0, NULL));
    child = fork();
    must("fork", child);
    if (!child) {
        execv(command[0], command);
        die(command[0]);
    }
    while ((ended = wait(&status)) != child)
        must("wait", ended);
    return outcome(status);
}

int enter(const char *root, char **command)
{
    pid_t child;
    int status;
    must("unshare", unshare(CLONE_NEWNS | CLONE_NEWPID));
    child = fork();
    must("fork", child);
    if (!child)
        _exit(first_process(root, command));
    must("wait", waitpid(child, &status, 0));
    return outcome(status);
}
