/*
 * A program that dies at one of its steps, and a look at what guests share.
 *
 * steps run AT COMMAND... [-- HOOK...]
 *     Runs COMMAND. A step is a system call, of any of its threads and children, that changes names, flags, or programs
 *     in the kernel, or makes such a change durable. At the entry of step AT (from 1) HOOK runs while all is as it is
 *     there, and then COMMAND and its children are killed. Prints "step AT CALL", or "ended CODE after STEPS steps" if
 *     there are not as many; AT 0: all are made.
 * steps shared TREE...
 *     Tries to open each regular file that is in more than one of these trees for writing. Prints the names of those
 *     that can be, and ends with "shared FILES, open OPEN".
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/bpf.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void fail(const char *what)
{
	perror(what);
	exit(125);
}

/* The call, if it is a step. */
static const char *step(const struct __ptrace_syscall_info *info)
{
	const __uint64_t *args = info->entry.args;
	switch (info->entry.nr) {
	case SYS_bpf:
		switch (args[0]) {
		case BPF_PROG_LOAD: return "bpf-load";
		case BPF_OBJ_PIN: return "bpf-pin";
		case BPF_RAW_TRACEPOINT_OPEN:
		case BPF_LINK_CREATE: return "bpf-attach";
		default: return NULL;
		}
	case SYS_ioctl: return args[1] == FS_IOC_SETFLAGS ? "set-flags" : NULL;
	case SYS_openat: return args[2] & O_CREAT ? "create" : NULL;
	case SYS_mkdirat: return "mkdirat";
	case SYS_unlinkat: return "unlinkat";
	case SYS_linkat: return "linkat";
	case SYS_renameat: case SYS_renameat2: return "rename";
	case SYS_mount: return "mount";
	case SYS_fsync: case SYS_fdatasync: case SYS_syncfs: return "sync";
#ifdef SYS_mkdir
	case SYS_mkdir: return "mkdir";
	case SYS_rmdir: return "rmdir";
	case SYS_unlink: return "unlink";
	case SYS_link: return "link";
	case SYS_rename: return "rename";
#endif
	default: return NULL;
	}
}

#define MOST 4096
static pid_t tasks[MOST];
static int task_count;

static void remember(pid_t task)
{
	for (int i = 0; i < task_count; i++)
		if (tasks[i] == task)
			return;
	if (task_count < MOST)
		tasks[task_count++] = task;
}

static void kill_all(void)
{
	int status;
	for (int i = 0; i < task_count; i++)
		syscall(SYS_tkill, tasks[i], SIGKILL);
	while (waitpid(-1, &status, __WALL) > 0 || errno == EINTR)
		;
}

static void run_hook(char **hook)
{
	int status;
	pid_t child = fork();
	if (child == 0) {
		execvp(hook[0], hook);
		_exit(127);
	}
	if (waitpid(child, &status, 0) != child || status != 0)
		fail("the hook failed");
}

static int run(long at, char **command, char **hook)
{
	const long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK |
			     PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL;
	long steps = 0;
	int status, code = 125;
	pid_t first = fork();
	if (first == 0) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		execvp(command[0], command);
		_exit(127);
	}
	if (waitpid(first, &status, 0) != first || ptrace(PTRACE_SETOPTIONS, first, 0, options) != 0)
		fail("ptrace");
	remember(first);
	ptrace(PTRACE_SYSCALL, first, 0, 0);
	for (;;) {
		pid_t task = waitpid(-1, &status, __WALL);
		if (task < 0 && errno == EINTR)
			continue;
		if (task < 0)
			break;
		if (WIFEXITED(status) || WIFSIGNALED(status)) {
			if (task == first)
				code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
			continue;
		}
		int number = WSTOPSIG(status), event = status >> 16, pass = 0;
		remember(task);
		if (number == (SIGTRAP | 0x80)) {
			struct __ptrace_syscall_info info;
			memset(&info, 0, sizeof info);
			ptrace(PTRACE_GET_SYSCALL_INFO, task, sizeof info, &info);
			const char *call = info.op == PTRACE_SYSCALL_INFO_ENTRY ? step(&info) : NULL;
			if (call && ++steps == at) {
				if (hook)
					run_hook(hook);
				kill_all();
				printf("step %ld %s\n", at, call);
				return 0;
			}
		} else if (event == 0 && number != SIGSTOP) {
			pass = number;
		}
		ptrace(PTRACE_SYSCALL, task, 0, pass);
	}
	printf("ended %d after %ld steps\n", code, steps);
	return 0;
}

#define FILES 4096
static struct file {
	dev_t dev;
	ino_t ino;
	int trees;
	char *path;
} files[FILES];
static int file_count, tree;

static int look(const char *path, const struct stat *stat, int kind, struct FTW *ftw)
{
	(void)ftw;
	if (kind != FTW_F || !S_ISREG(stat->st_mode))
		return 0;
	for (int i = 0; i < file_count; i++) {
		if (files[i].dev == stat->st_dev && files[i].ino == stat->st_ino) {
			files[i].trees |= 1 << tree;
			return 0;
		}
	}
	if (file_count == FILES)
		fail("too many files");
	files[file_count++] = (struct file){ stat->st_dev, stat->st_ino, 1 << tree, strdup(path) };
	return 0;
}

static int shared(char **trees)
{
	int count = 0, open_count = 0;
	for (tree = 0; trees[tree]; tree++)
		nftw(trees[tree], look, 16, FTW_PHYS);
	for (int i = 0; i < file_count; i++) {
		if ((files[i].trees & (files[i].trees - 1)) == 0)
			continue;
		count++;
		int fd = open(files[i].path, O_WRONLY | O_NONBLOCK | O_NOFOLLOW);
		if (fd < 0 && errno == EPERM)
			continue;
		printf("%s: %s\n", files[i].path, fd < 0 ? strerror(errno) : "can be written to");
		open_count++;
		close(fd);
	}
	printf("shared %d, open %d\n", count, open_count);
	return open_count != 0;
}

int main(int argc, char **argv)
{
	char **hook = NULL;
	if (argc >= 3 && strcmp(argv[1], "shared") == 0)
		return shared(argv + 2);
	if (argc < 4 || strcmp(argv[1], "run") != 0)
		return 2;
	for (int i = 3; i < argc; i++) {
		if (strcmp(argv[i], "--") == 0) {
			argv[i] = NULL;
			hook = argv + i + 1;
			break;
		}
	}
	return run(atol(argv[2]), argv + 3, hook);
}
