/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Sockets and what carries TCP. Checked against the BTF of 5.10 to 7.3. */
#ifndef KM_TCP_SOCK_H
#define KM_TCP_SOCK_H

#include <km/kernel.h>

/* include/linux/socket.h, include/uapi/linux/in.h, include/linux/stat.h */
#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define S_IFMT 00170000
#define S_IFSOCK 0140000

/* include/net/tcp_states.h; the same on 5.10 to 7.3 */
#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_SYN_RECV 3
#define TCP_FIN_WAIT1 4
#define TCP_FIN_WAIT2 5
#define TCP_TIME_WAIT 6
#define TCP_CLOSE 7
#define TCP_CLOSE_WAIT 8
#define TCP_LAST_ACK 9
#define TCP_LISTEN 10
#define TCP_CLOSING 11
#define TCP_NEW_SYN_RECV 12

/* include/uapi/asm-generic/errno.h */
#define EPIPE 32
#define ECONNRESET 104
#define ETIMEDOUT 110
#define ECONNREFUSED 111

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

#define SOCKFS_MAGIC 0x534F434B

struct socket {
	struct file *file;
	struct sock *sk;
} KM_CORE;

/* bits of skc_flags (include/net/sock.h, enum sock_flags); ask for their numbers */
enum sock_flags {
	SOCK_DEAD, /* no process has it any more */
	SOCK_DONE, /* the other side's FIN has come */
};

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
	int sk_err;
	__u32 sk_ack_backlog;
	__u32 sk_max_ack_backlog;
	struct socket *sk_socket;
} KM_CORE;

struct inet_sock {
	km_be16 inet_sport; /* stays when skc_num is given back */
} KM_CORE;

struct inet_connection_sock {
	__u8 icsk_ca_state : 5; /* six bits before 5.11 */
} KM_CORE;

struct tcp_sock {
	__u32 snd_cwnd;
	__u32 copied_seq;
	__u32 segs_in;
	__u32 segs_out;
	__u32 write_seq;
	__u32 mdev_us;
	__u32 rcv_nxt;
	__u32 snd_una;
	__u32 srtt_us;
	__u32 packets_out;
	__u64 bytes_received;
	__u64 bytes_acked;
	__u32 total_retrans;
	__u32 rcv_ooopack;
} KM_CORE;

/* a connection that a listener is making */
struct request_sock {
	struct sock_common __req_common;
	__u8 num_retrans;
} KM_CORE;

struct net_device {
	possible_net_t nd_net;
} KM_CORE;

struct sk_buff {
	struct net_device *dev;
	unsigned char *head;
	__u16 transport_header;
	__u16 network_header;
} KM_CORE;

/* since 6.10; the numbers change, so always ask for them */
#define KM_TCP_REASON(name) SK_RST_REASON_##name,
enum sk_rst_reason {
	KM_TCP_REASONS(KM_TCP_REASON)
};
#undef KM_TCP_REASON

/* what inet_csk_accept() takes since 6.10 (92ef0fd55ac8) */
struct proto_accept_arg {
	int flags;
} KM_CORE;

/* since 5.9; sk_common can be a request or a socket in TIME_WAIT; NULL after the last */
struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
} KM_CORE;

/* since 5.8; file is NULL once, after the last one */
struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	struct file *file;
} KM_CORE;

static __always_inline __u8 state_of(struct sock *sk)
{
	return km_read(sk, __sk_common.skc_state);
}

static __always_inline bool is_tcp(struct sock *sk)
{
	__u16 family = km_read(sk, __sk_common.skc_family);

	return (family == AF_INET || family == AF_INET6) && km_read(sk, sk_protocol) == IPPROTO_TCP;
}

static __always_inline bool has_flag(struct sock *sk, __u64 flag)
{
	return km_read(sk, __sk_common.skc_flags) >> flag & 1;
}

#define km_sock_flag(sk, name) has_flag(sk, km_enum_value(enum sock_flags, name))

#endif
