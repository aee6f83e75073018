// SPDX-License-Identifier: Apache-2.0
/*
 * Sends datagrams over the loopback device, and prints nanoseconds.
 *
 *	datagrams COUNT [resolve]	names that getaddrinfo asks another process for, port 53
 *	datagrams COUNT exchange	queries and their answers between two sockets, port 53
 *	datagrams COUNT ping_pong	datagrams there and back, any port
 *	datagrams COUNT flood		datagrams one way, some at a time, any port
 */
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <resolv.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MESSAGE 101
#define BURST 64
#define PIECE 512

/* what no server of names on this host has */
#define SERVER "127.77.0.1"

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

static void transmit(int fd, int size)
{
	must(send(fd, buffer, size, 0), "send");
}

static int receive(int fd)
{
	return must(recv(fd, buffer, PIECE, 0), "recv");
}

/* a server at the port, and a client; each connected to the other unless *alone* */
static void open_pair(int port, int alone, int *server, int *client)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(port) };
	socklen_t size = sizeof(at);

	inet_pton(AF_INET, SERVER, &at.sin_addr);
	*server = must(socket(AF_INET, SOCK_DGRAM, 0), "socket");
	must(bind(*server, (struct sockaddr *)&at, sizeof(at)), "bind");
	if (alone)
		return;
	must(getsockname(*server, (struct sockaddr *)&at, &size), "getsockname");
	*client = must(socket(AF_INET, SOCK_DGRAM, 0), "socket");
	must(connect(*client, (struct sockaddr *)&at, sizeof(at)), "connect");
	must(getsockname(*client, (struct sockaddr *)&at, &size), "getsockname");
	must(connect(*server, (struct sockaddr *)&at, sizeof(at)), "connect");
}

/* a query for the address of a name of its own; returns its size */
static int ask(int number)
{
	static const char header[] = "\0\0\1\0\0\1\0\0\0\0\0\0\12",
			  rest[] = "\7example\3org\0\0\1\0\1";
	char name[16];

	memcpy(buffer, header, 13);
	buffer[0] = number >> 8;
	buffer[1] = number;
	snprintf(name, sizeof(name), "n%09d", number);
	memcpy(buffer + 13, name, 10);
	memcpy(buffer + 23, rest, sizeof(rest) - 1);
	return 23 + sizeof(rest) - 1;
}

/* makes the query in the buffer a response with one address; returns its size */
static int answer(int size)
{
	static const char record[] = "\300\14\0\1\0\1\0\0\1\54\0\4\300\0\2\1";

	buffer[2] = (char)0x81;
	buffer[3] = (char)0x80;
	buffer[7] = 1;
	memcpy(buffer + size, record, sizeof(record) - 1);
	return size + sizeof(record) - 1;
}

static void serve(int fd)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		struct sockaddr_in from;
		socklen_t length = sizeof(from);
		int size =
			must(recvfrom(fd, buffer, PIECE / 2, 0, (struct sockaddr *)&from, &length),
			     "recvfrom");

		size = answer(size);
		must(sendto(fd, buffer, size, 0, (struct sockaddr *)&from, length), "sendto");
	}
}

static void look_up(int number)
{
	struct addrinfo hints = { .ai_family = AF_INET, .ai_socktype = SOCK_DGRAM }, *found;
	char name[32];
	int error;

	snprintf(name, sizeof(name), "n%09d.example.org.", number);
	error = getaddrinfo(name, NULL, &hints, &found);
	if (error) {
		fprintf(stderr, "%s: %s\n", name, gai_strerror(error));
		exit(1);
	}
	freeaddrinfo(found);
}

/* the resolver of the C library, as any program has it, but for the server */
static long long resolve(int count)
{
	int server, client;
	long long began;
	pid_t child;

	open_pair(53, 1, &server, &client);
	child = must(fork(), "fork");
	if (child == 0)
		serve(server);
	close(server);
	must(res_init(), "res_init");
	_res.nscount = 1;
	_res.nsaddr_list[0].sin_family = AF_INET;
	_res.nsaddr_list[0].sin_port = htons(53);
	inet_pton(AF_INET, SERVER, &_res.nsaddr_list[0].sin_addr);
	began = now();
	for (int i = 0; i < count; i++)
		look_up(i);
	began = now() - began;
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	return began;
}

static void exchange(int server, int client, int count)
{
	for (int i = 0; i < count; i++) {
		transmit(client, ask(i));
		transmit(server, answer(receive(server)));
		receive(client);
	}
}

static void ping_pong(int server, int client, int count)
{
	for (int i = 0; i < count; i++) {
		transmit(client, MESSAGE);
		receive(server);
		transmit(server, MESSAGE);
		receive(client);
	}
}

static void flood(int server, int client, int count)
{
	while (count > 0) {
		int burst = count < BURST ? count : BURST;

		for (int i = 0; i < burst; i++)
			transmit(client, MESSAGE);
		for (int i = 0; i < burst; i++)
			receive(server);
		count -= burst;
	}
}

int main(int argc, char **argv)
{
	int count = argc > 1 ? atoi(argv[1]) : 1, server, client;
	const char *how = argc > 2 ? argv[2] : "resolve";
	long long began;

	if (!strcmp(how, "resolve")) {
		printf("%lld\n", resolve(count));
		return 0;
	}
	open_pair(strcmp(how, "exchange") ? 0 : 53, 0, &server, &client);
	began = now();
	if (!strcmp(how, "exchange"))
		exchange(server, client, count);
	else if (!strcmp(how, "ping_pong"))
		ping_pong(server, client, count);
	else
		flood(server, client, count);
	printf("%lld\n", now() - began);
	return 0;
}
