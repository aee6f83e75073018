// SPDX-License-Identifier: Apache-2.0
/*
 * Makes processes start, exec, rename, and end in every way there is, and says
 * what it did: one JSON object per line and process, on standard output.
 *
 *	churn COUNT [PAUSE_US]
 *
 * COUNT processes are made, one kind after the other.  What a line says was
 * learnt from fork, waitpid and /proc, and from nothing that observes it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum kind {
	PLAIN,
	KILLED,
	EXEC,
	EXEC_CHAIN,
	THREADS,
	LEADER_FIRST,
	RENAME,
	DOUBLE_FORK,
	LATE_REAP,
	EXEC_THREAD,
	KINDS,
};

static const char *const names[KINDS] = {
	"plain",	"killed", "exec",	 "exec_chain", "threads",
	"leader_first", "rename", "double_fork", "late_reap",  "exec_thread",
};

/* the fate of each is told by its index */
struct process {
	enum kind kind;
	pid_t pid;
	pid_t parent;
	int status;
	long long born;		  /* CLOCK_MONOTONIC, ns, before fork */
	long long died;		  /* the same, after it was seen dead */
	unsigned long long ticks; /* start time of /proc/PID/stat, 0 if not read */
};

static const char *self;

static long long now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static int code_of(int index)
{
	return index % 251;
}

static int signal_of(int index)
{
	static const int signals[] = { SIGKILL, SIGTERM, SIGSEGV, SIGABRT, SIGHUP };

	return signals[index % 5];
}

static void exec_self(int index, int left)
{
	char index_text[16], left_text[16], long_text[64];
	char *argv[] = { "churn-exec", index_text, left_text, long_text, "", "two words", NULL };

	snprintf(index_text, sizeof(index_text), "%d", index);
	snprintf(left_text, sizeof(left_text), "%d", left);
	snprintf(long_text, sizeof(long_text), "--of=%040d", index);
	execv(self, argv);
	_exit(127);
}

/* what the executed program does: executes itself again, or exits */
static int executed(char **argv)
{
	int index = atoi(argv[1]), left = atoi(argv[2]);

	if (left > 0)
		exec_self(index, left - 1);
	_exit(code_of(index));
}

static void *idle_thread(void *unused)
{
	usleep(1000);
	return unused;
}

static void *last_thread(void *unused)
{
	/* until the leader is a zombie: its group must die with this thread */
	usleep(20000);
	syscall(SYS_exit, 99);
	return unused;
}

static void *exec_thread(void *argument)
{
	exec_self((int)(long)argument, 0);
	return NULL;
}

static void start_thread(void *(*body)(void *), void *argument)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, body, argument))
		_exit(126);
}

static void live_threads(int index)
{
	pthread_t threads[3];

	for (int i = 0; i < 3; i++)
		if (pthread_create(&threads[i], NULL, idle_thread, NULL))
			_exit(126);
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	_exit(code_of(index));
}

static void child(enum kind kind, int index)
{
	char name[16];

	switch (kind) {
	case KILLED:
		/* whoever runs this in the background may have it ignore SIGHUP */
		signal(signal_of(index), SIG_DFL);
		kill(getpid(), signal_of(index));
		pause();
		break;
	case EXEC:
		exec_self(index, 0);
		break;
	case EXEC_CHAIN:
		exec_self(index, 2);
		break;
	case THREADS:
		live_threads(index);
		break;
	case LEADER_FIRST:
		start_thread(last_thread, NULL);
		syscall(SYS_exit, code_of(index));
		break;
	case RENAME:
		snprintf(name, sizeof(name), "churned-%u", (unsigned int)index % 100000);
		prctl(PR_SET_NAME, name);
		break;
	case EXEC_THREAD:
		start_thread(exec_thread, (void *)(long)index);
		pause();
		break;
	default:
		break;
	}
	_exit(code_of(index));
}

static unsigned long long start_ticks(pid_t pid)
{
	char path[64], text[1024], *at;
	unsigned long long ticks = 0;
	ssize_t size;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return 0;
	size = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (size <= 0)
		return 0;
	text[size] = '\0';
	at = strrchr(text, ')');
	/* field 22; ") S" starts field 3 */
	for (int field = 2; at && field < 22; field++)
		at = strchr(at + 1, ' ');
	if (at)
		ticks = strtoull(at + 1, NULL, 10);
	return ticks;
}

static void reap(struct process *process)
{
	siginfo_t info;

	/* dead, but a zombie still: /proc tells when it was born */
	while (waitid(P_PID, process->pid, &info, WEXITED | WNOWAIT) && errno == EINTR)
		;
	process->died = now();
	process->ticks = start_ticks(process->pid);
	while (waitpid(process->pid, &process->status, 0) < 0 && errno == EINTR)
		;
}

static void say(const struct process *process, int index)
{
	int signaled = WIFSIGNALED(process->status);

	printf("{\"index\": %d, \"kind\": \"%s\", \"pid\": %d, \"parent_pid\": %d, \"exit_code\": "
	       "%d, "
	       "\"signal\": %d, \"born\": %lld, \"died\": %lld, \"ticks\": %llu}\n",
	       index, names[process->kind], process->pid, process->parent,
	       signaled ? 0 : WEXITSTATUS(process->status),
	       signaled ? WTERMSIG(process->status) : 0, process->born, process->died,
	       process->ticks);
}

static pid_t must_fork(void)
{
	pid_t pid = fork();

	if (pid < 0) {
		perror("fork");
		exit(1);
	}
	return pid;
}

/* a child that leaves a grandchild behind, which becomes ours as the subreaper */
static pid_t double_fork(int index, struct process *grandchild)
{
	int channel[2];
	pid_t pid;

	if (pipe(channel))
		exit(1);
	pid = must_fork();
	if (pid == 0) {
		pid_t below = must_fork();

		if (below == 0) {
			/* ours, once the child in between has exited */
			while (getppid() != atoi(getenv("CHURN_PID")))
				usleep(100);
			_exit(code_of(index + 1));
		}
		(void)!write(channel[1], &below, sizeof(below));
		_exit(code_of(index));
	}
	(void)!read(channel[0], &grandchild->pid, sizeof(grandchild->pid));
	grandchild->parent = pid;
	close(channel[0]);
	close(channel[1]);
	return pid;
}

int main(int argc, char **argv)
{
	int count = argc > 1 ? atoi(argv[1]) : 101, made = 0,
	    pause_us = argc > 2 ? atoi(argv[2]) : 0;
	struct rlimit no_core = { 0, 0 };
	struct process *all;
	char pid_text[16], path[4096];
	ssize_t size;

	size = readlink("/proc/self/exe", path, sizeof(path) - 1);
	if (size < 0)
		return 1;
	path[size] = '\0';
	self = path;
	if (argc > 2 && strcmp(argv[0], "churn-exec") == 0)
		return executed(argv);
	setrlimit(RLIMIT_CORE, &no_core);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	snprintf(pid_text, sizeof(pid_text), "%d", getpid());
	setenv("CHURN_PID", pid_text, 1);
	all = calloc(count + 1, sizeof(*all));
	if (!all)
		return 1;

	for (int turn = 0; made < count; turn++) {
		struct process *process = &all[made];
		enum kind kind = (enum kind)(turn % KINDS);

		if (kind == DOUBLE_FORK && made + 2 > count)
			kind = PLAIN;
		process->kind = kind;
		process->parent = getpid();
		process->born = now();
		if (kind == DOUBLE_FORK) {
			struct process *below = &all[made + 1];

			below->kind = kind;
			below->born = process->born;
			process->pid = double_fork(made, below);
			reap(process);
			reap(below);
			made += 2;
		} else {
			process->pid = must_fork();
			if (process->pid == 0)
				child(kind, made);
			if (kind != LATE_REAP)
				reap(process);
			made++;
		}
		if (pause_us)
			usleep(pause_us);
	}
	for (int i = 0; i < count; i++)
		if (all[i].kind == LATE_REAP)
			reap(&all[i]);
	for (int i = 0; i < count; i++)
		say(&all[i], i);
	return 0;
}
