/* Runs a command behind a filter of system calls: forbid kill|ERRNO NUMBER[,NUMBER...] COMMAND... */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOST 200

int main(int argc, char **argv)
{
	if (argc < 4)
		return 2;
	unsigned action = strcmp(argv[1], "kill") ? SECCOMP_RET_ERRNO | atoi(argv[1]) : SECCOMP_RET_KILL_PROCESS;
	struct sock_filter code[2 * MOST + 2] = { { BPF_LD | BPF_W | BPF_ABS, 0, 0, 0 } };
	int length = 1;
	for (char *number = strtok(argv[2], ","); number && length < 2 * MOST; number = strtok(NULL, ",")) {
		code[length++] = (struct sock_filter){ BPF_JMP | BPF_JEQ | BPF_K, 0, 1, atoi(number) };
		code[length++] = (struct sock_filter){ BPF_RET | BPF_K, 0, 0, action };
	}
	code[length++] = (struct sock_filter){ BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW };
	struct sock_fprog program = { length, code };
	/* With the capability no_new_privs is not needed, which set-id programs would notice. */
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
	    syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
		return perror("seccomp"), 1;
	execvp(argv[3], argv + 3);
	perror(argv[3]);
	return 127;
}
