// SPDX-License-Identifier: Apache-2.0
/*
 * Makes TCP connections that end in every way there is, and says what both of their ends did: one
 * JSON object per line and socket, on standard output.
 *
 *	connections COUNT IPV4 IPV6 [NETNS]
 *
 * The connecting process runs where it was started, the accepting ones in the network namespace
 * that the file NETNS names, where the addresses are.  What a line says was learnt from socket
 * calls, and from nothing that observes them.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum kind {
	CLIENT_FIRST,  /* the client closes, the server when it has seen that */
	SERVER_FIRST,  /* the other way round */
	HALF_CLOSE,    /* the server sends when it has seen the client's end of file */
	CLIENT_RESET,  /* the client closes with SO_LINGER 0 */
	SERVER_RESET,  /* the server does */
	CLIENT_UNREAD, /* the client closes while data waits for it */
	SERVER_UNREAD, /* the server does */
	QUEUED,	       /* the server closes while most of its data is not sent yet */
	REFUSED,       /* nobody listens */
	PASSED,	       /* other processes than those that opened it use and close it */
	KINDS,
};

static const char *const kind_names[KINDS] = {
	"client_first",	 "server_first",  "half_close", "client_reset", "server_reset",
	"client_unread", "server_unread", "queued",	"refused",	"passed",
};

/* what the client's and the listener's socket are */
enum family {
	V4,
	V6,
	MAPPED,
	DUAL,
	FAMILIES
};

/* listeners; nobody listens at the last */
enum listener {
	LISTEN_V4,
	LISTEN_V6,
	LISTEN_DUAL,
	LISTEN_NONE_V4,
	LISTEN_NONE_V6,
	LISTENERS
};

union address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

/* what the connecting process has the accepting one do next; COUNT is below zero at the end */
struct order {
	int index;
	enum kind kind;
	enum listener listener;
	int up, down; /* bytes that the client and the server send */
};

/* one socket, and what was done with it */
struct end {
	int fd;
	const char *role;
	pid_t opener;
	union address local, remote;
	long long opening, opened, closing; /* CLOCK_MONOTONIC, ns */
	long long sent, received, unread, unsent;
	int error;
};

static char buffer[1 << 16];

static void fail(const char *what)
{
	fprintf(stderr, "connections: %s: %s\n", what, strerror(errno));
	kill(0, SIGTERM);
	_exit(1);
}

static int must(int result, const char *what)
{
	if (result < 0)
		fail(what);
	return result;
}

static long long now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static void set(int fd, int level, int option, int value)
{
	must(setsockopt(fd, level, option, &value, sizeof(value)), "setsockopt");
}

/* the kernel's own name for what a receive or a connect said */
static const char *error_name(int error)
{
	switch (error) {
	case 0:
		return "";
	case ECONNRESET:
		return "ECONNRESET";
	case ECONNREFUSED:
		return "ECONNREFUSED";
	case EPIPE:
		return "EPIPE";
	default:
		return strerror(error);
	}
}

static const char *text_of(const union address *address, char *text, socklen_t size)
{
	const void *bytes = address->any.sa_family == AF_INET
				    ? (const void *)&address->v4.sin_addr
				    : (const void *)&address->v6.sin6_addr;

	return inet_ntop(address->any.sa_family, bytes, text, size) ?: "";
}

static void say(const struct end *end, int index, const char *kind)
{
	char local[64], remote[64], line[1024];
	int size = snprintf(
		line, sizeof(line),
		"{\"index\": %d, \"kind\": \"%s\", \"role\": \"%s\", \"opener\": %d, \"closer\": "
		"%d, "
		"\"local_address\": \"%s\", \"local_port\": %d, "
		"\"remote_address\": \"%s\", \"remote_port\": %d, "
		"\"opening\": %lld, \"opened\": %lld, \"closing\": %lld, \"closed\": %lld, "
		"\"sent\": %lld, \"received\": %lld, \"unread\": %lld, \"unsent\": %lld, "
		"\"error\": \"%s\"}\n",
		index, kind, end->role, end->opener, getpid(),
		text_of(&end->local, local, sizeof(local)), ntohs(end->local.v4.sin_port),
		text_of(&end->remote, remote, sizeof(remote)), ntohs(end->remote.v4.sin_port),
		end->opening, end->opened, end->closing, now(), end->sent, end->received,
		end->unread, end->unsent, error_name(end->error));

	/* in one piece, whoever else writes */
	if (write(STDOUT_FILENO, line, size) != size)
		fail("write");
}

static void look_up_names(struct end *end)
{
	socklen_t size = sizeof(end->local);

	must(getsockname(end->fd, &end->local.any, &size), "getsockname");
	size = sizeof(end->remote);
	if (getpeername(end->fd, &end->remote.any, &size))
		memset(&end->remote, 0, sizeof(end->remote));
}

/* close, having asked what was not received yet, and what the kernel has not sent yet */
static void finish(struct end *end, const struct order *order)
{
	int unread = 0, unsent = 0;

	if (end->opened) {
		must(ioctl(end->fd, SIOCINQ, &unread), "SIOCINQ");
		must(ioctl(end->fd, SIOCOUTQNSD, &unsent), "SIOCOUTQNSD");
	}
	end->unread = unread;
	end->unsent = unsent;
	end->closing = now();
	close(end->fd);
	say(end, order->index, kind_names[order->kind]);
}

static void finish_with_reset(struct end *end, const struct order *order)
{
	struct linger none = { .l_onoff = 1, .l_linger = 0 };

	must(setsockopt(end->fd, SOL_SOCKET, SO_LINGER, &none, sizeof(none)), "SO_LINGER");
	finish(end, order);
}

static void send_bytes(struct end *end, long long count)
{
	while (end->sent < count) {
		long long left = count - end->sent;
		/* odd pieces: segments are not what is sent at a time */
		size_t piece = left < 7919 ? left : 7919;
		ssize_t sent = send(end->fd, buffer, piece, MSG_NOSIGNAL);

		end->sent += must(sent, "send");
	}
}

static void receive_bytes(struct end *end, long long count)
{
	while (end->received < count) {
		long long left = count - end->received;
		size_t piece = left < (long long)sizeof(buffer) ? left : (long long)sizeof(buffer);
		ssize_t received = must(recv(end->fd, buffer, piece, 0), "recv");

		if (received == 0) {
			errno = EPROTO;
			fail("end of file too early");
		}
		end->received += received;
	}
}

/* until the other side closes or resets; what comes is counted */
static void receive_end(struct end *end)
{
	for (;;) {
		ssize_t received = recv(end->fd, buffer, sizeof(buffer), 0);

		if (received < 0)
			end->error = errno;
		if (received <= 0)
			return;
		end->received += received;
	}
}

static void wait_for_unread(const struct end *end, int count)
{
	int unread = 0;

	do {
		usleep(100);
		must(ioctl(end->fd, SIOCINQ, &unread), "SIOCINQ");
	} while (unread < count);
}

/* -- the accepting side ---------------------------------------------------------------------- */

static void tell(int control)
{
	must(send(control, "", 1, 0), "tell");
}

static void be_told(int control)
{
	char told;

	if (must(recv(control, &told, 1, 0), "be told") == 0)
		_exit(1);
}

static void serve(struct end *end, const struct order *order, int control)
{
	switch (order->kind) {
	case HALF_CLOSE:
		receive_end(end);
		send_bytes(end, order->down);
		finish(end, order);
		break;
	case SERVER_UNREAD:
		wait_for_unread(end, order->up);
		send_bytes(end, order->down);
		be_told(control);
		finish(end, order);
		break;
	case SERVER_RESET:
		receive_bytes(end, order->up);
		send_bytes(end, order->down);
		be_told(control);
		finish_with_reset(end, order);
		break;
	case SERVER_FIRST:
	case QUEUED:
		receive_bytes(end, order->up);
		send_bytes(end, order->down);
		finish(end, order);
		break;
	default:
		receive_bytes(end, order->up);
		send_bytes(end, order->down);
		receive_end(end);
		finish(end, order);
		break;
	}
	tell(control);
}

struct passing {
	struct msghdr header;
	struct iovec vector;
	char room[CMSG_SPACE(sizeof(int))];
};

static void prepare(struct passing *passing, void *data, size_t size)
{
	memset(passing, 0, sizeof(*passing));
	passing->vector.iov_base = data;
	passing->vector.iov_len = size;
	passing->header.msg_iov = &passing->vector;
	passing->header.msg_iovlen = 1;
	passing->header.msg_control = passing->room;
	passing->header.msg_controllen = sizeof(passing->room);
}

struct passed {
	struct end end;
	struct order order;
};

static void pass(int channel, const struct end *end, const struct order *order)
{
	struct passed passed = { *end, *order };
	struct passing passing;
	struct cmsghdr *control;

	prepare(&passing, &passed, sizeof(passed));
	control = CMSG_FIRSTHDR(&passing.header);
	control->cmsg_level = SOL_SOCKET;
	control->cmsg_type = SCM_RIGHTS;
	control->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(control), &end->fd, sizeof(int));
	must(sendmsg(channel, &passing.header, 0), "sendmsg");
	close(end->fd);
}

/* the process that serves what another one has accepted */
static void work(int channel, int control)
{
	for (;;) {
		struct passed passed;
		struct passing passing;

		prepare(&passing, &passed, sizeof(passed));
		if (must(recvmsg(channel, &passing.header, 0), "recvmsg") == 0)
			_exit(0);
		memcpy(&passed.end.fd, CMSG_DATA(CMSG_FIRSTHDR(&passing.header)), sizeof(int));
		serve(&passed.end, &passed.order, control);
	}
}

static pid_t must_fork(void)
{
	pid_t pid = must(fork(), "fork");

	if (pid == 0)
		prctl(PR_SET_PDEATHSIG, SIGTERM);
	return pid;
}

static int start_worker(int control)
{
	int channel[2];

	must(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, channel), "socketpair");
	if (must_fork() == 0) {
		close(channel[0]);
		work(channel[1], control);
	}
	close(channel[1]);
	return channel[0];
}

static void accept_one(struct end *end, int listener)
{
	memset(end, 0, sizeof(*end));
	end->role = "accept";
	end->opener = getpid();
	end->opening = now();
	end->fd = must(accept(listener, NULL, NULL), "accept");
	end->opened = now();
	look_up_names(end);
	/* more than the kernel would let anybody else have: nothing waits for room */
	set(end->fd, SOL_SOCKET, SO_SNDBUFFORCE, 1 << 20);
}

static int listen_at(enum listener which, struct end *end)
{
	int v6 = which != LISTEN_V4 && which != LISTEN_NONE_V4;
	union address address = { .any.sa_family = v6 ? AF_INET6 : AF_INET };

	memset(end, 0, sizeof(*end));
	end->role = "listen";
	end->opener = getpid();
	end->opening = now();
	end->fd = must(socket(address.any.sa_family, SOCK_STREAM, 0), "socket");
	if (v6)
		set(end->fd, IPPROTO_IPV6, IPV6_V6ONLY, which != LISTEN_DUAL);
	must(bind(end->fd, &address.any, v6 ? sizeof(address.v6) : sizeof(address.v4)), "bind");
	if (which < LISTEN_NONE_V4)
		must(listen(end->fd, 16), "listen");
	end->opened = now();
	look_up_names(end);
	return ntohs(end->local.v4.sin_port);
}

static void accept_all(int control)
{
	struct end listeners[LISTENERS], end;
	int ports[LISTENERS], channel;
	struct order order;

	/* before there are listeners: it shall not hold them open */
	channel = start_worker(control);
	for (int i = 0; i < LISTENERS; i++)
		ports[i] = listen_at(i, &listeners[i]);
	must(send(control, ports, sizeof(ports), 0), "ports");
	while (must(recv(control, &order, sizeof(order), 0), "order") > 0 && order.index >= 0) {
		accept_one(&end, listeners[order.listener].fd);
		if (order.kind == PASSED)
			pass(channel, &end, &order);
		else
			serve(&end, &order, control);
	}
	close(channel);
	wait(NULL);
	for (int i = 0; i < LISTEN_NONE_V4; i++) {
		listeners[i].closing = now();
		close(listeners[i].fd);
		say(&listeners[i], -1, "listener");
	}
	_exit(0);
}

/* -- the connecting side --------------------------------------------------------------------- */

static const char *ipv4, *ipv6;
static int ports[LISTENERS];

static enum listener listener_of(enum kind kind, enum family family)
{
	static const enum listener listeners[FAMILIES] = { LISTEN_V4, LISTEN_V6, LISTEN_DUAL,
							   LISTEN_DUAL };

	if (kind == REFUSED)
		return family == V6 ? LISTEN_NONE_V6 : LISTEN_NONE_V4;
	return listeners[family];
}

static socklen_t address_of(union address *address, enum family family, int port)
{
	char mapped[64];

	memset(address, 0, sizeof(*address));
	address->v4.sin_port = htons(port);
	if (family == V4 || family == DUAL) {
		address->any.sa_family = AF_INET;
		must(inet_pton(AF_INET, ipv4, &address->v4.sin_addr) - 1, ipv4);
		return sizeof(address->v4);
	}
	snprintf(mapped, sizeof(mapped), "::ffff:%s", ipv4);
	address->any.sa_family = AF_INET6;
	must(inet_pton(AF_INET6, family == V6 ? ipv6 : mapped, &address->v6.sin6_addr) - 1, ipv6);
	return sizeof(address->v6);
}

static void connect_one(struct end *end, const struct order *order, enum family family)
{
	union address address;
	socklen_t size = address_of(&address, family, ports[order->listener]);
	union address any = { .any.sa_family = address.any.sa_family };

	memset(end, 0, sizeof(*end));
	end->role = "connect";
	end->opener = getpid();
	end->opening = now();
	end->fd = must(socket(address.any.sa_family, SOCK_STREAM, 0), "socket");
	/*
	 * Its window closes soon, and what the server sends waits there: in segments that are
	 * small beside the window, or each waits for a timer.
	 */
	if (order->kind == QUEUED) {
		set(end->fd, SOL_SOCKET, SO_RCVBUF, 16384);
		set(end->fd, IPPROTO_TCP, TCP_MAXSEG, 1024);
	}
	/* a port of its own is kept when the connection is refused, and then it can be asked for */
	if (order->kind == REFUSED)
		must(bind(end->fd, &any.any, size), "bind");
	if (connect(end->fd, &address.any, size)) {
		end->error = errno;
		end->remote = address;
		size = sizeof(end->local);
		must(getsockname(end->fd, &end->local.any, &size), "getsockname");
		return;
	}
	end->opened = now();
	look_up_names(end);
}

static void use(struct end *end, const struct order *order, int control)
{
	send_bytes(end, order->up);
	switch (order->kind) {
	case SERVER_FIRST:
		receive_end(end);
		finish(end, order);
		be_told(control);
		break;
	case HALF_CLOSE:
		must(shutdown(end->fd, SHUT_WR), "shutdown");
		receive_end(end);
		finish(end, order);
		be_told(control);
		break;
	case QUEUED:
		be_told(control);
		receive_end(end);
		finish(end, order);
		break;
	case CLIENT_RESET:
		receive_bytes(end, order->down);
		finish_with_reset(end, order);
		be_told(control);
		break;
	case CLIENT_UNREAD:
		wait_for_unread(end, order->down);
		finish(end, order);
		be_told(control);
		break;
	case SERVER_RESET:
	case SERVER_UNREAD:
		receive_bytes(end, order->down);
		tell(control);
		receive_end(end);
		finish(end, order);
		be_told(control);
		break;
	default:
		receive_bytes(end, order->down);
		finish(end, order);
		be_told(control);
		break;
	}
}

/* as many bytes as the kind bears: what is left unread has to fit in where it waits */
static struct order order_of(int index, enum family *family)
{
	struct order order = { .index = index, .kind = index % KINDS };
	int large = index % 13 == 12;

	*family = index / KINDS % FAMILIES;
	order.listener = listener_of(order.kind, *family);
	order.up = (index * 7919LL) % (large ? 300007 : 9973);
	order.down = (index * 104729LL) % (large ? 200003 : 12007);
	if (order.kind == QUEUED)
		order.down = 150001 + index * 101;
	if (order.kind == SERVER_UNREAD)
		order.up = 1 + order.up % 9973;
	if (order.kind == CLIENT_UNREAD)
		order.down = 1 + order.down % 9973;
	if (order.kind == REFUSED)
		order.up = order.down = 0;
	return order;
}

static void connect_all(int count, int control)
{
	struct order order = { .index = -1 };

	must(recv(control, ports, sizeof(ports), 0), "ports");
	for (int index = 0; index < count; index++) {
		enum family family;
		struct end end;

		order = order_of(index, &family);
		if (order.kind != REFUSED)
			must(send(control, &order, sizeof(order), 0), "order");
		connect_one(&end, &order, family);
		if (order.kind == REFUSED) {
			finish(&end, &order);
		} else if (order.kind == PASSED) {
			pid_t child = must_fork();

			if (child == 0) {
				use(&end, &order, control);
				_exit(0);
			}
			close(end.fd);
			waitpid(child, NULL, 0);
		} else {
			use(&end, &order, control);
		}
	}
	order.index = -1;
	must(send(control, &order, sizeof(order), 0), "order");
}

int main(int argc, char **argv)
{
	int control[2], status;
	pid_t server;

	if (argc < 4)
		return 2;
	ipv4 = argv[2];
	ipv6 = argv[3];
	setpgid(0, 0);
	alarm(240);
	must(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, control), "socketpair");
	server = must_fork();
	if (server == 0) {
		close(control[0]);
		if (argc > 4)
			must(setns(must(open(argv[4], O_RDONLY | O_CLOEXEC), argv[4]),
				   CLONE_NEWNET),
			     "setns");
		accept_all(control[1]);
	}
	close(control[1]);
	connect_all(atoi(argv[1]), control[0]);
	waitpid(server, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
