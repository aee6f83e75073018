/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* What carries UDP. Checked against the BTF of 5.10 to 7.3. */
#ifndef KM_UDP_SOCK_H
#define KM_UDP_SOCK_H

#include <km/sock.h>

/* include/uapi/linux/in.h, include/linux/net.h, include/net/sock.h */
#define IPPROTO_UDP 17
#define SOCK_DGRAM 2
#define RCV_SHUTDOWN 1

/* include/linux/socket.h */
#define MSG_PEEK 2
#define MSG_ERRQUEUE 0x2000

/* include/net/tcp_states.h: what a socket of UDP is in, connected or not */
#define TCP_ESTABLISHED 1
#define TCP_CLOSE 7

struct list_head {
	struct list_head *next;
} KM_CORE;

struct net_device {
	struct {
		struct list_head upper;
		struct list_head lower;
	} adj_list;
} KM_CORE;

struct sk_buff {
	struct sk_buff *next; /* NULL once it is out of its queue */
	struct net_device *dev;
	struct sock *sk;
	unsigned int len;
	unsigned int end; /* an offset from head, as it is on 64 bits */
	unsigned char *head;
	unsigned char *data;
	__u16 transport_header;
	__u16 network_header;
} KM_CORE;

struct skb_shared_info {
	unsigned short gso_size;
} KM_CORE;

/* since 6.18; what waits to be freed on another CPU */
struct skb_defer_node {
	long defer_count;
} KM_CORE;

/* what udp_send_skb() and udp_v6_send_skb() are told beside the packet */
struct inet_cork {
	__u16 gso_size;
} KM_CORE;

union flowi_uli {
	struct {
		km_be16 dport;
		km_be16 sport;
	} ports;
} KM_CORE;

struct flowi4 {
	km_be32 saddr;
	km_be32 daddr;
	union flowi_uli uli;
} KM_CORE;

struct flowi6 {
	struct in6_addr daddr;
	struct in6_addr saddr;
	union flowi_uli uli;
} KM_CORE;

/* since 5.9; NULL after the last */
struct bpf_iter__udp {
	struct bpf_iter_meta *meta;
	struct sock *udp_sk;
} KM_CORE;

/*
 * A packet's socket can be a request or a connection in TIME_WAIT, which have no more
 * than their sock_common: neither is in a state that a socket of UDP is in.
 */
static __always_inline bool is_udp(struct sock *sk)
{
	__u16 family = km_read(sk, __sk_common.skc_family);
	__u8 state = km_read(sk, __sk_common.skc_state);

	return (family == AF_INET || family == AF_INET6) &&
	       (state == TCP_ESTABLISHED || state == TCP_CLOSE) &&
	       km_read(sk, sk_protocol) == IPPROTO_UDP && km_read(sk, sk_type) == SOCK_DGRAM;
}

static __always_inline __u32 drops_of(struct sock *sk)
{
	struct numa_drop_counters *counters = NULL;

	if (km_field_exists(struct sock, sk_drop_counters))
		counters = km_read(sk, sk_drop_counters);
	if (counters)
		return km_read(counters, drops0.counter) + km_read(counters, drops1.counter);
	return km_read(sk, sk_drops.counter);
}

#endif
