// SPDX-License-Identifier: Apache-2.0
/*
 * The workload: churn COUNT forks, executes /bin/true and waits, COUNT times,
 * then prints the nanoseconds it took in all.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static unsigned long long now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000ULL + at.tv_nsec;
}

static int once(void)
{
	char *arguments[] = { "/bin/true", NULL }, *environment[] = { NULL };
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		execve(arguments[0], arguments, environment);
		_exit(127);
	}
	return pid < 0 || waitpid(pid, &status, 0) != pid || status;
}

int main(int argc, char **argv)
{
	unsigned long long started;
	int count, i;

	if (argc != 2) {
		fprintf(stderr, "usage: churn COUNT\n");
		return 2;
	}
	count = atoi(argv[1]);
	started = now();
	for (i = 0; i < count; i++) {
		if (once()) {
			perror("churn");
			return 1;
		}
	}
	printf("%llu\n", now() - started);
	return 0;
}
