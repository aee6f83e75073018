/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Sockets, packets and buffers of processes. Checked against the BTF of 5.10 to 7.3. */
#ifndef KM_DNS_SOCK_H
#define KM_DNS_SOCK_H

#include <km/endpoints.h>

/* include/uapi/linux/in.h, include/uapi/linux/if_ether.h */
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_FRAGMENT 44
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd

/* include/net/tcp_states.h; a request, and what is left of a connection, are no whole sockets */
#define TCP_TIME_WAIT 6
#define TCP_NEW_SYN_RECV 12

struct kmem_cache;

struct proto {
	struct kmem_cache *slab;
} KM_CORE;

/* what else is read of a socket, to prove where pages are */
struct sock___slab {
	struct proto *sk_prot_creator;
} KM_CORE;

struct tcp_sock {
	__u32 copied_seq; /* what processes have read */
	__u32 write_seq;  /* what processes have written */
} KM_CORE;

struct list_head {
	struct list_head *next;
} KM_CORE;

struct net_device {
	possible_net_t nd_net;
	struct {
		struct list_head lower;
	} adj_list;
} KM_CORE;

typedef struct {
	atomic_t refs;
} KM_CORE refcount_t;

struct sk_buff {
	struct sk_buff *next;
	struct net_device *dev;
	struct sock *sk;
	char cb[48];
	unsigned int len;
	unsigned int data_len;
	km_be16 protocol;
	__u16 transport_header;
	__u16 network_header;
	unsigned int end; /* offset of skb_shared_info from head */
	unsigned char *head;
	unsigned char *data;
	refcount_t users;
} KM_CORE;

/* what sk_buff.cb is for TCP */
struct tcp_skb_cb {
	__u32 seq;
} KM_CORE;

struct page {
	unsigned long compound_head;   /* of a tail; bit 0 is set then */
	struct kmem_cache *slab_cache; /* before 5.17 (d122019bf061) */
} KM_CORE;

/* what a page of a slab is since then */
struct slab {
	struct kmem_cache *slab_cache;
} KM_CORE;

/* a part of a packet that lies in pages: before 6.9 (21d2e6737c97) */
struct bio_vec {
	struct page *bv_page;
	unsigned int bv_len;
	unsigned int bv_offset;
} KM_CORE;

/* and since then */
struct skb_frag {
	unsigned long netmem; /* a page; with bit 0 set it is none */
	unsigned int len;
	unsigned int offset;
} KM_CORE;

struct skb_shared_info {
	__u8 nr_frags;
	struct sk_buff *frag_list;
	struct skb_frag frags[1]; /* or of the other kind; as many as there are */
} KM_CORE;

union flowi_uli {
	struct {
		km_be16 dport;
	} ports;
} KM_CORE;

struct flowi4 {
	union flowi_uli uli;
} KM_CORE;

struct flowi6 {
	union flowi_uli uli;
} KM_CORE;

struct iovec {
	void *iov_base;
	unsigned long iov_len;
} KM_CORE;

/* its numbers change between versions, so always ask for them */
enum iter_type {
	ITER_IOVEC,
	ITER_UBUF, /* since 6.0 (fcb14cb1bdac) */
};

struct iov_iter {
	unsigned int type;	   /* before 5.14 (8cd54c1c8480), with the direction in bit 0 */
	__u8 iter_type;		   /* since then */
	unsigned long iov_offset;  /* in the first of them */
	unsigned long count;	   /* bytes in all */
	const struct iovec *iov;   /* before 6.4 (747b1f65d39a) */
	const struct iovec *__iov; /* since then */
	void *ubuf;
	unsigned long nr_segs;
} KM_CORE;

struct msghdr {
	struct iov_iter msg_iter;
} KM_CORE;

/* whether it is a whole socket of this protocol, over IP of either version */
static __always_inline bool speaks(struct sock *sk, __u16 protocol)
{
	__u16 family;
	__u8 state;

	if (!sk || km_read(sk, sk_protocol) != protocol)
		return false;
	state = km_read(sk, __sk_common.skc_state);
	family = km_read(sk, __sk_common.skc_family);
	return state != TCP_NEW_SYN_RECV && state != TCP_TIME_WAIT &&
	       (family == AF_INET || family == AF_INET6);
}

#endif
