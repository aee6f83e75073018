// SPDX-License-Identifier: Apache-2.0
/*
 * Connects over the loopback device, to a process of its own, and prints nanoseconds.
 *
 *	connect COUNT		connections, one after the other: 101 bytes each way, and closed
 *	connect COUNT bulk	MiB that one connection carries
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MESSAGE 101
#define PIECE (1 << 16)

static char buffer[PIECE];

static int must(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

static long long now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static void receive(int fd, long long count)
{
	while (count > 0) {
		ssize_t got = recv(fd, buffer, count < PIECE ? count : PIECE, 0);

		if (got <= 0)
			must(-1, "recv");
		count -= got;
	}
}

static void transmit(int fd, long long count)
{
	while (count > 0)
		count -= must(send(fd, buffer, count < PIECE ? count : PIECE, 0), "send");
}

/* answers each message, or only the end of a bulk, until the other side closes */
static void serve(int listener, int count, long long message)
{
	for (int i = 0; i < count; i++) {
		int fd = must(accept(listener, NULL, NULL), "accept");

		receive(fd, message);
		transmit(fd, MESSAGE);
		if (recv(fd, buffer, 1, 0) != 0)
			must(-1, "end of file");
		close(fd);
	}
	_exit(0);
}

static void use(const struct sockaddr_in *server, long long message)
{
	int fd = must(socket(AF_INET, SOCK_STREAM, 0), "socket");

	must(connect(fd, (const struct sockaddr *)server, sizeof(*server)), "connect");
	transmit(fd, message);
	receive(fd, MESSAGE);
	close(fd);
}

int main(int argc, char **argv)
{
	/* any port: what an earlier run has used may wait for its time to pass */
	struct sockaddr_in server = { .sin_family = AF_INET };
	int bulk = argc > 2 && !strcmp(argv[2], "bulk");
	int count = argc > 1 ? atoi(argv[1]) : 1;
	long long message = bulk ? (long long)count << 20 : MESSAGE;
	int listener = must(socket(AF_INET, SOCK_STREAM, 0), "socket");
	socklen_t size = sizeof(server);
	long long began;
	int status;

	if (bulk)
		count = 1;
	server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	must(bind(listener, (struct sockaddr *)&server, sizeof(server)), "bind");
	must(listen(listener, 16), "listen");
	must(getsockname(listener, (struct sockaddr *)&server, &size), "getsockname");
	if (must(fork(), "fork") == 0)
		serve(listener, count, message);
	began = now();
	for (int i = 0; i < count; i++)
		use(&server, message);
	printf("%lld\n", now() - began);
	wait(&status);
	return status ? 1 : 0;
}
