/* An adversary: threads that change what a path leads to while another makes it lead to another file.
 *
 * flip HOW WHAT ROUNDS NAMES: in directories n0000 and so on, `f` is the shared file and `p` is none. HOW is `memory`
 * (the string changes), `rename` (the two names change places) or `symlink` (`l` leads to one or the other); WHAT is
 * `open` (for writing), `chmod` or `truncate`. A directory whose shared file has become private is left for the next
 * one. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define OPENERS 2

static enum { MEMORY, RENAME, SYMLINK } how;
static enum { OPEN, CHMOD, TRUNCATE } what;
static int rounds, names;
static volatile int number, over;
static volatile char last = 'f';
static char paths[OPENERS][16];
static ino_t shared;
static int done, denied, missing, others, leaked;

static void count(int *counter)
{
	__atomic_add_fetch(counter, 1, __ATOMIC_SEQ_CST);
}

static void *flip(void *unused)
{
	(void)unused;
	while (!over) {
		char a[16], b[16];
		int at = number;
		switch (how) {
		case MEMORY:
			for (int i = 0; i < OPENERS; i++) {
				volatile char *end = &paths[i][6];
				*end = *end == 'f' ? 'p' : 'f';
			}
			break;
		case RENAME:
			snprintf(a, sizeof a, "n%04d/f", at);
			snprintf(b, sizeof b, "n%04d/p", at);
			renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE);
			break;
		case SYMLINK:
			snprintf(a, sizeof a, "n%04d/s", at);
			snprintf(b, sizeof b, "n%04d/l", at);
			last = last == 'f' ? 'p' : 'f';
			if (symlink((char[]){ last, 0 }, a) == 0)
				rename(a, b);
			break;
		}
	}
	return NULL;
}

static int is_spent(int at)
{
	char path[16];
	struct stat f, p;
	snprintf(path, sizeof path, "n%04d/f", at);
	int gone = stat(path, &f);
	path[6] = 'p';
	return gone || stat(path, &p) || (f.st_ino != shared && p.st_ino != shared);
}

/* Returns 0 or an error. */
static int change(const char *path)
{
	struct stat stat;
	int fd;
	switch (what) {
	case CHMOD:
		return chmod(path, 0700) ? errno : 0;
	case TRUNCATE:
		return truncate(path, 0) ? errno : 0;
	case OPEN:
		break;
	}
	fd = open(path, O_WRONLY);
	if (fd < 0)
		return errno;
	fstat(fd, &stat);
	if (stat.st_ino == shared)
		count(&leaked);
	close(fd);
	return 0;
}

static void *writer(void *which)
{
	char *path = paths[(long)which];
	for (int i = 0; i < rounds && number < names; i++) {
		int at = number;
		if (is_spent(at)) {
			__atomic_compare_exchange_n(&number, &at, at + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
			at = number;
		}
		char digits[8];
		snprintf(digits, sizeof digits, "n%04d/", at % 10000);
		memcpy(path, digits, 6);
		if (how != MEMORY)
			path[6] = how == SYMLINK ? 'l' : 'f';
		int error = change(path);
		count(!error ? &done : error == EPERM ? &denied : error == ENOENT ? &missing : &others);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t flipper, openers[OPENERS];
	struct stat stat_;
	if (argc != 5)
		return 2;
	how = !strcmp(argv[1], "memory") ? MEMORY : !strcmp(argv[1], "rename") ? RENAME : SYMLINK;
	what = !strcmp(argv[2], "open") ? OPEN : !strcmp(argv[2], "chmod") ? CHMOD : TRUNCATE;
	rounds = atoi(argv[3]) / OPENERS;
	names = atoi(argv[4]);
	if (stat("n0000/f", &stat_))
		return 2;
	shared = stat_.st_ino;
	for (int i = 0; i < OPENERS; i++)
		strcpy(paths[i], "n0000/f");
	pthread_create(&flipper, NULL, flip, NULL);
	for (long i = 0; i < OPENERS; i++)
		pthread_create(&openers[i], NULL, writer, (void *)i);
	for (int i = 0; i < OPENERS; i++)
		pthread_join(openers[i], NULL);
	over = 1;
	pthread_join(flipper, NULL);
	printf("%d done, %d denied, %d missing, %d others, %d names, %d leaked\n", done, denied, missing, others, number,
	       leaked);
	return leaked != 0;
}
