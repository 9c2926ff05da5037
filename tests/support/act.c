/* What a process under cow-run does that no shell can do: act WHAT ARGUMENT... */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static int append(const char *path)
{
	int fd = open(path, O_WRONLY | O_APPEND);
	if (fd < 0)
		return errno;
	int failed = write(fd, "x\n", 2) == 2 ? 0 : errno;
	close(fd);
	return failed;
}

/* listener COMMAND...: runs it behind a filter that has a listener. */
static int listener(char **command)
{
	struct sock_filter code[] = { { BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW } };
	struct sock_fprog program = { 1, code };
	int fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
	/* Without an open listener there is none; the descriptor itself is closed by exec. */
	if (fd < 0 || dup(fd) < 0)
		return perror("seccomp"), 1;
	execv(command[0], command);
	return 1;
}

static volatile sig_atomic_t ticks;

static void tick(int signal)
{
	(void)signal;
	ticks++;
}

/* signals FLAGS COUNT FILES: opens f000 and so on, COUNT times in all, with a timer of 1 kHz. */
static int signals(char **words)
{
	struct sigaction action = { .sa_handler = tick, .sa_flags = atoi(words[0]) ? SA_RESTART : 0 };
	struct itimerval often = { { 0, 1000 }, { 0, 1000 } };
	int count = atoi(words[1]), files = atoi(words[2]), interrupted = 0, failed = 0;
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	for (int i = 0; i < count; i++) {
		char name[16];
		snprintf(name, sizeof name, "f%03d", i % files);
		int fd = open(name, O_WRONLY | O_APPEND);
		if (fd >= 0)
			close(fd);
		else if (errno == EINTR)
			interrupted++;
		else
			failed++, fprintf(stderr, "%s: %s\n", name, strerror(errno));
	}
	printf("%d interrupted %d failed\n", interrupted, failed);
	fprintf(stderr, "%d ticks\n", (int)ticks);
	return 0;
}

/* crowd COUNT: so many children wait for their files, then are killed; then one more file is written to. */
static int crowd(char **words)
{
	int count = atoi(words[0]), killed = 0;
	pid_t *children = calloc(count, sizeof *children);
	for (int i = 0; i < count; i++) {
		children[i] = fork();
		if (children[i] == 0) {
			char name[16];
			snprintf(name, sizeof name, "f%03d", i);
			_exit(append(name) != 0);
		}
	}
	printf("waiting\n");
	fflush(stdout);
	while (access("go", F_OK))
		usleep(1000);
	for (int i = 0; i < count; i++)
		kill(children[i], SIGKILL);
	for (int i = 0; i < count; i++) {
		int status;
		waitpid(children[i], &status, 0);
		killed += WIFSIGNALED(status);
	}
	char last[16];
	snprintf(last, sizeof last, "f%03d", count);
	printf("%d killed, then %s\n", killed, strerror(append(last)));
	return 0;
}

static int same, errors;

static void *writer(void *number)
{
	for (int i = 0; i < 20; i++) {
		char name[16];
		snprintf(name, sizeof name, "f%03d", same ? i : (int)(long)number * 20 + i);
		int error = append(name);
		if (error)
			__atomic_add_fetch(&errors, 1, __ATOMIC_SEQ_CST), fprintf(stderr, "%s: %s\n", name, strerror(error));
	}
	return NULL;
}

/* threads SAME: eight threads, twenty files each, the same ones or others. */
static int threads(char **words)
{
	pthread_t all[8];
	same = atoi(words[0]);
	for (long i = 0; i < 8; i++)
		pthread_create(&all[i], NULL, writer, (void *)i);
	for (int i = 0; i < 8; i++)
		pthread_join(all[i], NULL);
	printf("%d errors\n", errors);
	return 0;
}

/* work COUNT: appends to, changes, replaces and removes a file in turn, and says for each what came of it. */
static int work(char **words)
{
	int count = atoi(words[0]);
	for (int i = 0; i < count; i++) {
		char name[16], new[16];
		int failed = 0;
		snprintf(name, sizeof name, "f%03d", i);
		snprintf(new, sizeof new, "new%03d", i);
		switch (i % 4) {
		case 0: failed = append(name); break;
		case 1: failed = chmod(name, 0700) ? errno : 0; break;
		case 2:
			close(open(new, O_WRONLY | O_CREAT | O_EXCL, 0644));
			failed = rename(new, name) ? errno : 0;
			break;
		case 3: failed = unlink(name) ? errno : 0; break;
		}
		printf("%d %s\n", i, failed ? strerrorname_np(failed) : "done");
		fflush(stdout);
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	char **words = argv + 2;
	if (!strcmp(argv[1], "listener"))
		return listener(words);
	if (!strcmp(argv[1], "signals"))
		return signals(words);
	if (!strcmp(argv[1], "crowd"))
		return crowd(words);
	if (!strcmp(argv[1], "threads"))
		return threads(words);
	if (!strcmp(argv[1], "work"))
		return work(words);
	return 2;
}
