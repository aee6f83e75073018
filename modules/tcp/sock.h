/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* What carries TCP. Checked against the BTF of 5.10 to 7.3. */
#ifndef KM_TCP_SOCK_H
#define KM_TCP_SOCK_H

#include <km/sock.h>

/* include/uapi/linux/in.h */
#define IPPROTO_TCP 6

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

static __always_inline __u8 state_of(struct sock *sk)
{
	return km_read(sk, __sk_common.skc_state);
}

static __always_inline bool is_tcp(struct sock *sk)
{
	__u16 family = km_read(sk, __sk_common.skc_family);

	return (family == AF_INET || family == AF_INET6) && km_read(sk, sk_protocol) == IPPROTO_TCP;
}

#endif
