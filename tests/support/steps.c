/*
 * A program that dies at one of its steps or has one of them refused, and a look at what guests share.
 *
 * steps run AT COMMAND... [-- HOOK...]
 *     Runs COMMAND. A step is a system call, of any of its threads and children, that changes names, flags, or programs
 *     in the kernel, or makes such a change durable. At the entry of step AT (from 1) HOOK runs while all is as it is
 *     there, and then COMMAND and its children are killed. Prints "step AT CALL", or "ended CODE after STEPS steps" if
 *     there are not as many; AT 0: all are made.
 * steps fail AT ERRNO COMMAND...
 *     The same, but the kernel does not make the call, COMMAND is told that it failed with this number, and goes on to
 *     its end. Prints both lines.
 * steps -c ...
 *     What changes content and metadata of files is a step, too.
 * steps -o PROGRAM ...
 *     Only PROGRAM makes steps, a name without directories. What it starts is let go as soon as that is another program.
 * steps shutdown DIRECTORY
 *     Ends the filesystem as a power cut does: nothing more goes to the disk, not even what its log has in memory.
 * steps shared TREE...
 *     Tries to open each regular file that is in more than one of these trees for writing. Prints the names of those
 *     that can be, and ends with "shared FILES, open OPEN".
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/bpf.h>
#include <linux/fs.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

/* Of ext4 and xfs; fs/ext4/ext4.h. */
#define SHUTDOWN _IOR('X', 125, __u32)
#define SHUTDOWN_WITHOUT_LOG 2

static void fail(const char *what)
{
	perror(what);
	exit(125);
}

static int content_too;
static const char *only;

/* Whether a descriptor of another process is of a regular file. */
static int is_file(pid_t task, int fd)
{
	char path[64];
	struct stat stat_;
	snprintf(path, sizeof path, "/proc/%d/fd/%d", task, fd);
	return stat(path, &stat_) == 0 && S_ISREG(stat_.st_mode);
}

/* The call, if it changes content or metadata. */
static const char *content_step(pid_t task, const struct __ptrace_syscall_info *info)
{
	const __uint64_t *args = info->entry.args;
	switch (info->entry.nr) {
	case SYS_write: case SYS_pwrite64: case SYS_writev: case SYS_pwritev:
		return is_file(task, args[0]) ? "write" : NULL;
	case SYS_ioctl:
		switch ((unsigned int)args[1]) {
		case FICLONE: case FICLONERANGE: return "clone";
		case FIDEDUPERANGE: return "dedupe";
		case FS_IOC_FSSETXATTR: return "set-flags";
		default: return NULL;
		}
	case SYS_openat: return args[2] & O_TRUNC ? "truncate" : NULL;
	case SYS_fallocate: return "fallocate";
	case SYS_truncate: case SYS_ftruncate: return "truncate";
	case SYS_copy_file_range: return "copy";
	case SYS_setxattr: case SYS_lsetxattr: case SYS_fsetxattr: return "setxattr";
	case SYS_removexattr: case SYS_lremovexattr: case SYS_fremovexattr: return "removexattr";
	case SYS_fchmod: case SYS_fchmodat: return "chmod";
	case SYS_fchown: case SYS_fchownat: return "chown";
	case SYS_utimensat: return "utimens";
	case SYS_symlinkat: return "symlink";
	case SYS_mknodat: return "mknod";
#ifdef SYS_chmod
	case SYS_chmod: return "chmod";
	case SYS_chown: case SYS_lchown: return "chown";
#endif
	default: return NULL;
	}
}

/* The call, if it is a step. */
static const char *name_step(const struct __ptrace_syscall_info *info)
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

static const char *program_of(pid_t task)
{
	static char program[4096];
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/exe", task);
	ssize_t length = readlink(path, program, sizeof program - 1);
	program[length < 0 ? 0 : length] = '\0';
	const char *slash = strrchr(program, '/');
	return slash ? slash + 1 : program;
}

static const char *step(pid_t task, const struct __ptrace_syscall_info *info)
{
	const char *call = name_step(info);
	if (!call && content_too)
		call = content_step(task, info);
	return call && (!only || strcmp(only, program_of(task)) == 0) ? call : NULL;
}

/* At its entry: the kernel makes no call. */
static void skip(pid_t task)
{
#ifdef __x86_64__
	if (ptrace(PTRACE_POKEUSER, task, offsetof(struct user_regs_struct, orig_rax), -1L) != 0)
		fail("skip");
#else
	int number = -1;
	struct iovec part = { &number, sizeof number };
	if (ptrace(PTRACE_SETREGSET, task, NT_ARM_SYSTEM_CALL, &part) != 0)
		fail("skip");
#endif
}

/* At its exit: what it returns. */
static void set_result(pid_t task, long result)
{
#ifdef __x86_64__
	if (ptrace(PTRACE_POKEUSER, task, offsetof(struct user_regs_struct, rax), result) != 0)
		fail("result");
#else
	struct user_regs_struct registers;
	struct iovec part = { &registers, sizeof registers };
	if (ptrace(PTRACE_GETREGSET, task, NT_PRSTATUS, &part) != 0)
		fail("result");
	registers.regs[0] = result;
	if (ptrace(PTRACE_SETREGSET, task, NT_PRSTATUS, &part) != 0)
		fail("result");
#endif
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
	pid_t task;
	for (int i = 0; i < task_count; i++)
		syscall(SYS_tkill, tasks[i], SIGKILL);
	while ((task = waitpid(-1, &status, __WALL)) > 0 || errno == EINTR) {
		/* A child that was only just made: it stops before its first call, and would do so for ever. */
		if (task > 0 && WIFSTOPPED(status))
			syscall(SYS_tkill, task, SIGKILL);
	}
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

/* With `error`, step `at` fails; else all is killed there. */
static int run(long at, int error, char **command, char **hook)
{
	const long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK |
			     PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL;
	long steps = 0;
	int status, code = 125, seen = 0;
	pid_t failing = 0;
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
			if (info.op == PTRACE_SYSCALL_INFO_EXIT && task == failing) {
				set_result(task, -error);
				failing = 0;
			}
			const char *call = info.op == PTRACE_SYSCALL_INFO_ENTRY ? step(task, &info) : NULL;
			if (call && ++steps == at) {
				printf("step %ld %s\n", at, call);
				if (!error) {
					if (hook)
						run_hook(hook);
					kill_all();
					return 0;
				}
				skip(task);
				failing = task;
			}
		} else if (event == PTRACE_EVENT_EXEC && only) {
			int is_only = strcmp(only, program_of(task)) == 0;
			if (seen && !is_only) {
				ptrace(PTRACE_DETACH, task, 0, 0);
				continue;
			}
			seen |= is_only;
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

static int shut_down(const char *directory)
{
	__u32 how = SHUTDOWN_WITHOUT_LOG;
	int fd = open(directory, O_RDONLY);
	if (fd < 0 || ioctl(fd, SHUTDOWN, &how) != 0)
		fail(directory);
	return 0;
}

int main(int argc, char **argv)
{
	char **hook = NULL;
	for (; argc > 1 && argv[1][0] == '-'; argc--, argv++) {
		if (strcmp(argv[1], "-c") == 0) {
			content_too = 1;
		} else if (strcmp(argv[1], "-o") == 0 && argc > 2) {
			only = argv[2];
			argc--, argv++;
		} else {
			return 2;
		}
	}
	if (argc >= 3 && strcmp(argv[1], "shared") == 0)
		return shared(argv + 2);
	if (argc == 3 && strcmp(argv[1], "shutdown") == 0)
		return shut_down(argv[2]);
	if (argc >= 5 && strcmp(argv[1], "fail") == 0)
		return run(atol(argv[2]), atoi(argv[3]), argv + 4, NULL);
	if (argc < 4 || strcmp(argv[1], "run") != 0)
		return 2;
	for (int i = 3; i < argc; i++) {
		if (strcmp(argv[i], "--") == 0) {
			argv[i] = NULL;
			hook = argv + i + 1;
			break;
		}
	}
	return run(atol(argv[2]), 0, argv + 3, hook);
}
