// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Functions with known names that keep frame pointers. The innermost one makes the
 * system call itself, as the C library's own functions keep none.
 *
 *	stacked fork	forks once for each line of standard input, printing the child's pid
 *	stacked hold	waits for the end of standard input
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define APART __attribute__((noinline, noclone, used))

APART long stacked_innermost(void)
{
	long result;

#if defined(__x86_64__)
	register long r10 __asm__("r10") = 0;
	register long r8 __asm__("r8") = 0;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(SYS_clone), "D"((long)SIGCHLD), "S"(0L), "d"(0L), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = SYS_clone;
	register long x0 __asm__("x0") = SIGCHLD;
	register long x1 __asm__("x1") = 0;
	register long x2 __asm__("x2") = 0;
	register long x3 __asm__("x3") = 0;
	register long x4 __asm__("x4") = 0;

	__asm__ volatile("svc 0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
			 : "memory");
	result = x0;
#endif
	return result;
}

/* the sums keep the calls from becoming jumps */
APART long stacked_middle(void)
{
	long result = stacked_innermost();

	__asm__ volatile("" : "+r"(result));
	return result;
}

APART long stacked_outer(void)
{
	long result = stacked_middle();

	__asm__ volatile("" : "+r"(result));
	return result;
}

int main(int count, char **arguments)
{
	char line[64];

	if (count > 1 && !strcmp(arguments[1], "hold")) {
		puts("ready");
		fflush(stdout);
		while (fgets(line, sizeof(line), stdin))
			;
		return 0;
	}
	while (fgets(line, sizeof(line), stdin)) {
		long child = stacked_outer();

		if (!child)
			_exit(0);
		waitpid(child, NULL, 0);
		printf("%ld\n", child);
		fflush(stdout);
	}
	return 0;
}
