// SPDX-License-Identifier: Apache-2.0
/*
 * Answers datagrams, taking and sending them in one of the ways that there are.
 *
 *	responder COUNT [MODE FAMILY ADDRESS PORT]...
 *
 * For each socket there is a process of its own, which has inherited it: its id is said,
 * in the order of the arguments, and it answers COUNT datagrams with what they hold and the
 * bit set that makes a DNS message a response. MODE is
 *
 *	plain   recvmsg and sendmsg
 *	look    the same, after a look with MSG_PEEK
 *	many    recvmmsg and sendmmsg
 *	ring    io_uring
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROOM 16384
#define AT_ONCE 4

struct datagram {
	struct sockaddr_storage peer;
	struct iovec vector;
	char bytes[ROOM];
};

static struct datagram datagrams[AT_ONCE];
static struct mmsghdr headers[AT_ONCE];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void prepare(void)
{
	for (int i = 0; i < AT_ONCE; i++) {
		datagrams[i].vector.iov_base = datagrams[i].bytes;
		datagrams[i].vector.iov_len = ROOM;
		headers[i].msg_hdr.msg_name = &datagrams[i].peer;
		headers[i].msg_hdr.msg_namelen = sizeof(datagrams[i].peer);
		headers[i].msg_hdr.msg_iov = &datagrams[i].vector;
		headers[i].msg_hdr.msg_iovlen = 1;
	}
}

static void make_response(struct datagram *datagram, unsigned length)
{
	datagram->vector.iov_len = length;
	if (length > 2)
		datagram->bytes[2] |= 0x80;
}

static int open_socket(int family, const char *address, int port)
{
	struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	struct sockaddr_in four = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(family, SOCK_DGRAM, 0), error;

	if (family == AF_INET) {
		inet_pton(family, address, &four.sin_addr);
		error = bind(fd, (struct sockaddr *)&four, sizeof(four));
	} else {
		inet_pton(family, address, &six.sin6_addr);
		error = bind(fd, (struct sockaddr *)&six, sizeof(six));
	}
	if (fd < 0 || error)
		die("bind");
	return fd;
}

static void answer_plain(int fd, int count, int look)
{
	struct msghdr *header = &headers[0].msg_hdr;

	while (count--) {
		prepare();
		if (look && recvmsg(fd, header, MSG_PEEK) < 0)
			die("recvmsg");
		ssize_t length = recvmsg(fd, header, 0);

		if (length < 0)
			die("recvmsg");
		make_response(&datagrams[0], length);
		if (sendmsg(fd, header, 0) < 0)
			die("sendmsg");
	}
}

static void answer_many(int fd, int count)
{
	while (count > 0) {
		prepare();
		int taken = recvmmsg(fd, headers, AT_ONCE, MSG_WAITFORONE, NULL);

		if (taken < 0)
			die("recvmmsg");
		for (int i = 0; i < taken; i++)
			make_response(&datagrams[i], headers[i].msg_len);
		if (sendmmsg(fd, headers, taken, 0) != taken)
			die("sendmmsg");
		count -= taken;
	}
}

struct ring {
	int fd;
	struct io_uring_params params;
	char *submitted, *completed;
	struct io_uring_sqe *entries;
};

static void open_ring(struct ring *ring)
{
	struct io_uring_params *p = &ring->params;

	ring->fd = syscall(__NR_io_uring_setup, AT_ONCE, p);
	if (ring->fd < 0)
		die("io_uring_setup");
	ring->submitted = mmap(NULL, p->sq_off.array + p->sq_entries * 4, PROT_READ | PROT_WRITE,
			       MAP_SHARED, ring->fd, IORING_OFF_SQ_RING);
	ring->completed = mmap(NULL, p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe),
			       PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, IORING_OFF_CQ_RING);
	ring->entries = mmap(NULL, p->sq_entries * sizeof(struct io_uring_sqe),
			     PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, IORING_OFF_SQES);
	if (ring->submitted == MAP_FAILED || ring->completed == MAP_FAILED ||
	    ring->entries == MAP_FAILED)
		die("mmap");
}

static int do_by_ring(struct ring *ring, int operation, int fd, struct msghdr *header)
{
	unsigned *tail = (unsigned *)(ring->submitted + ring->params.sq_off.tail);
	unsigned *array = (unsigned *)(ring->submitted + ring->params.sq_off.array);
	unsigned mask = *(unsigned *)(ring->submitted + ring->params.sq_off.ring_mask);
	unsigned *head = (unsigned *)(ring->completed + ring->params.cq_off.head);
	unsigned taken = *(unsigned *)(ring->completed + ring->params.cq_off.ring_mask) & *head;
	struct io_uring_cqe *done =
		(struct io_uring_cqe *)(ring->completed + ring->params.cq_off.cqes) + taken;
	struct io_uring_sqe *entry = &ring->entries[*tail & mask];

	memset(entry, 0, sizeof(*entry));
	entry->opcode = operation;
	entry->fd = fd;
	entry->addr = (unsigned long)header;
	entry->len = 1;
	array[*tail & mask] = *tail & mask;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	if (syscall(__NR_io_uring_enter, ring->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		die("io_uring_enter");
	int result = done->res;

	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	if (result < 0) {
		errno = -result;
		die("io_uring");
	}
	return result;
}

static void answer_by_ring(int fd, int count)
{
	struct msghdr *header = &headers[0].msg_hdr;
	struct ring ring = {};

	open_ring(&ring);
	while (count--) {
		prepare();
		make_response(&datagrams[0], do_by_ring(&ring, IORING_OP_RECVMSG, fd, header));
		do_by_ring(&ring, IORING_OP_SENDMSG, fd, header);
	}
}

/* returns the process that answers */
static pid_t answer(const char *mode, int fd, int count)
{
	pid_t child = fork();

	if (child)
		return child;
	if (!strcmp(mode, "ring"))
		answer_by_ring(fd, count);
	else if (!strcmp(mode, "many"))
		answer_many(fd, count);
	else
		answer_plain(fd, count, !strcmp(mode, "look"));
	_exit(0);
}

int main(int argc, char **argv)
{
	int count = atoi(argv[1]), status, failed = 0;

	for (int i = 2; i + 3 < argc; i += 4) {
		int family = !strcmp(argv[i + 1], "ipv4") ? AF_INET : AF_INET6;
		int fd = open_socket(family, argv[i + 2], atoi(argv[i + 3]));

		printf("%d\n", answer(argv[i], fd, count));
		close(fd);
	}
	fflush(stdout);
	while (wait(&status) > 0)
		failed |= status;
	return failed != 0;
}
