/*
 * What a guest, or a user in one, does to the others' files while the host changes names.
 *
 * hostile chmod FILE | chown FILE | setcap FILE | truncate FILE | truncate-io FILE | write FILE
 *     As root without CAP_LINUX_IMMUTABLE: tries to change a shared file, again and again.
 * hostile exec FILE
 *     As a user: runs the file, which is this program, again and again. Run so it tells whether it has got rights.
 * hostile slow-exec FILE
 *     The same, with arguments that the kernel copies for a long time after it has opened the file.
 * hostile exchange DIRECTORY
 *     Waits until another process moves a file into the directory, then exchanges the last file of it with a directory,
 *     and removes what has the last file's name.
 * hostile lock DIRECTORY
 *     As a user: locks all files of the directory, and holds the locks.
 *
 * Ends when its standard input does, and prints "tried N done N".
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/openat2.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

static volatile int over;
static long tried, done;

static void fail(const char *what)
{
	perror(what);
	exit(125);
}

static void *until_the_end(void *unused)
{
	char byte;
	(void)unused;
	while (read(0, &byte, 1) > 0) {
	}
	over = 1;
	return NULL;
}

/* Keeps of root's capabilities those that a careful host leaves to a guest, fewer than systemd-nspawn does. */
static void drop(void)
{
	static const int kept[] = {CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_KILL, CAP_SETFCAP};
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {{0}};
	for (int cap = 0; cap <= CAP_LAST_CAP; cap++) {
		int keep = 0;
		for (size_t at = 0; at < sizeof kept / sizeof *kept; at++)
			keep |= kept[at] == cap;
		if (!keep)
			prctl(PR_CAPBSET_DROP, cap);
		else
			data[cap / 32].effective |= 1u << cap % 32;
	}
	for (int at = 0; at < 2; at++)
		data[at].permitted = data[at].inheritable = data[at].effective;
	if (syscall(SYS_capset, &header, data))
		fail("capset");
}

static void become_a_user(void)
{
	if (setgid(65534) || setuid(65534))
		fail("setuid");
}

static int change(const char *how, const char *file)
{
	struct stat now;
	if (!strcmp(how, "chmod"))
		return chmod(file, 04755);
	if (!strcmp(how, "chown")) {
		/* Of a set-id file root may do both, one after the other. */
		if (chown(file, 65534, -1))
			return -1;
		return 0;
	}
	if (!strcmp(how, "setcap")) {
		struct vfs_cap_data all = {.magic_etc = VFS_CAP_REVISION_2 | VFS_CAP_FLAGS_EFFECTIVE,
					   .data = {{~0u, 0}, {0xff, 0}}};
		return setxattr(file, "security.capability", &all, sizeof all, 0);
	}
	int fd;
	if (!strcmp(how, "truncate")) {
		struct open_how open_how = {.flags = O_RDONLY | O_TRUNC};
		fd = syscall(SYS_openat2, AT_FDCWD, file, &open_how, sizeof open_how);
	} else if (!strcmp(how, "truncate-openat")) {
		fd = open(file, O_RDONLY | O_TRUNC);
	} else if (!strcmp(how, "truncate-path")) {
		return truncate(file, 0);
	} else if (!strcmp(how, "write")) {
		struct open_how open_how = {.flags = O_WRONLY | O_NONBLOCK};
		fd = syscall(SYS_openat2, AT_FDCWD, file, &open_how, sizeof open_how);
	} else {
		fd = -1;
		fprintf(stderr, "no such way: %s\n", how);
		exit(125);
	}
	if (fd < 0)
		return -1;
	if (!strcmp(how, "write") && (write(fd, "hostile", 7) != 7 || fstat(fd, &now)))
		fd = -1;
	close(fd);
	return 0;
}

/* Whether this program, run as `file`, has got rights. */
static int gets_rights(char *const arguments[])
{
	int status;
	pid_t child = vfork();
	if (!child) {
		execv(arguments[0], arguments);
		_exit(0);
	}
	if (child < 0 || waitpid(child, &status, 0) != child)
		return 0;
	return WIFEXITED(status) && WEXITSTATUS(status) == 42;
}

static int has_rights(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];
	return !geteuid() || (!syscall(SYS_capget, &header, data) && (data[0].permitted || data[1].permitted));
}

static void execute(char *file, int slow)
{
	static char word[128 * 1024];
	static char *arguments[64] = {NULL, "rights"};
	arguments[0] = file;
	memset(word, 'x', sizeof word - 1);
	if (slow) {
		for (int at = 2; at < 50; at++)
			arguments[at] = word;
	}
	while (!over) {
		tried++;
		done += gets_rights(arguments);
	}
}

static void exchange(const char *directory)
{
	char last[4096] = "", path[8192], trap[8192], buffer[65536];
	int watch = inotify_init1(IN_NONBLOCK);
	struct dirent **names;
	int count = scandir(directory, &names, NULL, alphasort);
	if (watch < 0 || inotify_add_watch(watch, directory, IN_MOVED_TO) < 0 || count < 1)
		fail(directory);
	for (int at = 0; at < count; at++) {
		if (names[at]->d_name[0] != '.')
			snprintf(last, sizeof last, "%s", names[at]->d_name);
	}
	snprintf(path, sizeof path, "%s/%s", directory, last);
	snprintf(trap, sizeof trap, "%s.trap", directory);
	mkdir(trap, 0755);
	/* Not empty: so it cannot be removed. */
	snprintf(buffer, sizeof buffer, "%s/inside", trap);
	mkdir(buffer, 0755);
	while (!over && read(watch, buffer, sizeof buffer) <= 0) {
	}
	for (int at = 0; !over && at < 2000000; at++) {
		tried++;
		if (!syscall(SYS_renameat2, AT_FDCWD, path, AT_FDCWD, trap, 2 /* RENAME_EXCHANGE */))
			done++;
		unlink(path);
	}
	struct pollfd in = {.fd = 0, .events = POLLIN};
	while (!over)
		poll(&in, 1, 50);
}

static void lock_all(const char *directory)
{
	struct rlimit limit = {1 << 20, 1 << 20};
	setrlimit(RLIMIT_NOFILE, &limit);
	become_a_user();
	DIR *dir = opendir(directory);
	if (!dir)
		fail(directory);
	for (struct dirent *name; (name = readdir(dir));) {
		int fd = openat(dirfd(dir), name->d_name, O_RDONLY | O_NOFOLLOW);
		tried++;
		done += fd >= 0 && !flock(fd, LOCK_SH | LOCK_NB);
	}
	printf("ready\n");
	fflush(stdout);
	while (!over)
		usleep(20000);
}

int main(int argc, char **argv)
{
	if (argc >= 2 && !strcmp(argv[1], "rights"))
		return has_rights() ? 42 : 0;
	if (argc != 3)
		fail("usage");
	pthread_t thread;
	if (pthread_create(&thread, NULL, until_the_end, NULL))
		fail("thread");
	if (!strcmp(argv[1], "exec") || !strcmp(argv[1], "slow-exec")) {
		become_a_user();
		execute(argv[2], argv[1][0] == 's');
	} else if (!strcmp(argv[1], "exchange")) {
		drop();
		exchange(argv[2]);
	} else if (!strcmp(argv[1], "lock")) {
		lock_all(argv[2]);
	} else {
		drop();
		while (!over) {
			tried++;
			done += !change(argv[1], argv[2]);
		}
	}
	printf("tried %ld done %ld\n", tried, done);
	return 0;
}
