/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Sockets, and how a file leads to one. Checked against the BTF of 5.10 to 7.3. */
#ifndef KM_SOCK_H
#define KM_SOCK_H

#include <km/kernel.h>

/* include/linux/socket.h, include/linux/stat.h, include/uapi/linux/magic.h */
#define AF_INET 2
#define AF_INET6 10
#define S_IFMT 00170000
#define S_IFSOCK 0140000
#define SOCKFS_MAGIC 0x534F434B

struct in6_addr {
	__u8 bytes[16]; /* for its size; in the kernel a union of arrays */
};

struct ns_common {
	unsigned int inum;
} KM_CORE;

struct net {
	struct ns_common ns;
} KM_CORE;

typedef struct {
	struct net *net;
} KM_CORE possible_net_t;

struct sock;

struct sock_common {
	km_be32 skc_daddr;
	km_be32 skc_rcv_saddr;
	km_be16 skc_dport;
	__u16 skc_num; /* local port, host order */
	unsigned short skc_family;
	unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	unsigned long skc_flags;
	struct sock *skc_listener; /* of a request, in the place of skc_flags */
} KM_CORE;

struct inode;

struct file {
	struct inode *f_inode;
	void *private_data; /* of a socket its struct socket */
} KM_CORE;

struct super_block {
	unsigned long s_magic;
} KM_CORE;

struct inode {
	unsigned short i_mode;
	struct super_block *i_sb;
	unsigned long i_ino;
} KM_CORE;

struct socket {
	struct file *file;
	struct sock *sk;
} KM_CORE;

/* bits of skc_flags (include/net/sock.h, enum sock_flags); ask for their numbers */
enum sock_flags {
	SOCK_DEAD, /* no process has it any more */
	SOCK_DONE, /* the other side's FIN has come */
};

/* where drops are counted since 6.18, if the socket has it */
struct numa_drop_counters {
	atomic_t drops0;
	atomic_t drops1;
} KM_CORE;

struct sock {
	struct sock_common __sk_common;
	__u16 sk_type;
	__u16 sk_protocol;
	int sk_err;
	__u32 sk_ack_backlog;
	__u32 sk_max_ack_backlog;
	struct socket *sk_socket;
	__u8 sk_shutdown;
	atomic_t sk_drops;
	struct numa_drop_counters *sk_drop_counters;
} KM_CORE;

struct inet_sock {
	km_be16 inet_sport; /* stays when skc_num is given back */
} KM_CORE;

/* since 5.8; file is NULL once, after the last one */
struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	struct file *file;
} KM_CORE;

static __always_inline bool has_flag(struct sock *sk, __u64 flag)
{
	return km_read(sk, __sk_common.skc_flags) >> flag & 1;
}

#define km_sock_flag(sk, name) has_flag(sk, km_enum_value(enum sock_flags, name))

/* the socket that a file is, or NULL */
static __always_inline struct sock *sock_of(struct file *file)
{
	struct inode *inode = km_read(file, f_inode);

	if ((km_read(inode, i_mode) & S_IFMT) != S_IFSOCK ||
	    km_read(inode, i_sb, s_magic) != SOCKFS_MAGIC)
		return NULL;
	return km_read((struct socket *)km_read(file, private_data), sk);
}

/* of the file that a socket has been since it was made; 0: it has none, or none any more */
static __always_inline __u64 inode_of(struct sock *sk)
{
	return km_read(sk, sk_socket, file, f_inode, i_ino);
}

/*
 * A number that no other socket gets while the machine is up: no two are opened on one
 * CPU within 64 ns, and it takes four years until the clock comes round.
 */
static __always_inline __u64 new_id(void)
{
	return bpf_ktime_get_boot_ns() >> 6 << 13 | (bpf_get_smp_processor_id() & 0x1fff);
}

#endif
