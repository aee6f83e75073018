// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * DNS: the datagrams and the connections of the ports where DNS is spoken. Each hook has
 * alternatives; the manifest gives their order.
 *
 *	hook          tag        alternatives, in the order of preference
 *	closed        END        fentry, kprobe inet_release and security_sk_free
 *	udp_sent      TELEMETRY  the slot udp_sent
 *	                         · fentry, kprobe udp_send_skb and udp_v6_send_skb
 *	                         · fentry, kprobe ip_send_skb and ip6_send_skb
 *	                         · tp_btf net_dev_queue
 *	udp_received  TELEMETRY  the slot udp_received · fentry, kprobe skb_consume_udp
 *	                         · tp_btf netif_receive_skb, sk_data_ready and sock_recv_length
 *	tcp_sent      TELEMETRY  fentry, kprobe tcp_sendmsg · tp_btf tcp_sendmsg_locked
 *	tcp_received  TELEMETRY  tp_btf skb_copy_datagram_iovec
 *	                         · fentry, kprobe skb_copy_datagram_iter
 *
 * The slots are called by another module's kprobes, with the datagrams that they look at.
 */
#include "arrival.h"
#include "datagram.h"
#include "stream.h"

#include <km/entry.h>

/* read by the handler alone */
const volatile __u32
	timeout_ms KM_DOC("a query without an answer is told of after so long; 0: never") = 10000;

/*
 * ---- closed: nothing can come from the socket any more. A kprobe's program is passed
 * over where it interrupts another one, as the free can; the last close by a process
 * never does, but there are sockets that were never a process's ----
 */

SEC("fentry/inet_release")
KM_HOOK(closed, END)
int BPF_PROG(released_fentry, struct socket *sock)
{
	return on_free(ctx, km_read(sock, sk));
}

SEC("kprobe/inet_release")
KM_HOOK(closed, END)
int BPF_KPROBE(released_kprobe, struct socket *sock)
{
	return on_free(ctx, km_read(sock, sk));
}

SEC("fentry/security_sk_free")
KM_HOOK(closed, END)
int BPF_PROG(closed_fentry, struct sock *sk)
{
	return on_free(ctx, sk);
}

SEC("kprobe/security_sk_free")
KM_HOOK(closed, END)
int BPF_KPROBE(closed_kprobe, struct sock *sk)
{
	return on_free(ctx, sk);
}

/* ---- udp_sent: the datagram is complete, and not yet cut into fragments ---- */

/* called with the arguments of either */
SEC("kprobe")
KM_HOOK(udp_sent, TELEMETRY)
int BPF_KPROBE(sent_slot, struct sk_buff *skb, void *flow)
{
	return on_udp_send(ctx, skb, flow, KM_DNS_SLOT);
}

SEC("fentry/udp_send_skb")
KM_HOOK(udp_sent, TELEMETRY)
int BPF_PROG(sent4_fentry, struct sk_buff *skb, void *flow)
{
	return on_udp_send(ctx, skb, flow, KM_DNS_OWN);
}

SEC("fentry/udp_v6_send_skb")
KM_HOOK(udp_sent, TELEMETRY)
int BPF_PROG(sent6_fentry, struct sk_buff *skb, void *flow)
{
	return on_udp_send(ctx, skb, flow, KM_DNS_OWN);
}

SEC("kprobe/udp_send_skb")
KM_HOOK(udp_sent, TELEMETRY)
int BPF_KPROBE(sent4_kprobe, struct sk_buff *skb, void *flow)
{
	return on_udp_send(ctx, skb, flow, KM_DNS_OWN);
}

SEC("kprobe/udp_v6_send_skb")
KM_HOOK(udp_sent, TELEMETRY)
int BPF_KPROBE(sent6_kprobe, struct sk_buff *skb, void *flow)
{
	return on_udp_send(ctx, skb, flow, KM_DNS_OWN);
}

/* what calls them may have been inlined */
SEC("fentry/ip_send_skb")
KM_HOOK(udp_sent, TELEMETRY)
int BPF_PROG(sent4_ip_fentry, struct net *net, struct sk_buff *skb)
{
	return on_ip_send(ctx, skb);
}

SEC("fentry/ip6_send_skb")
KM_HOOK(udp_sent, TELEMETRY)
int BPF_PROG(sent6_ip_fentry, struct sk_buff *skb)
{
	return on_ip_send(ctx, skb);
}

SEC("kprobe/ip_send_skb")
KM_HOOK(udp_sent, TELEMETRY)
int BPF_KPROBE(sent4_ip_kprobe, struct net *net, struct sk_buff *skb)
{
	return on_ip_send(ctx, skb);
}

SEC("kprobe/ip6_send_skb")
KM_HOOK(udp_sent, TELEMETRY)
int BPF_KPROBE(sent6_ip_kprobe, struct sk_buff *skb)
{
	return on_ip_send(ctx, skb);
}

SEC("tp_btf/net_dev_queue")
KM_HOOK(udp_sent, TELEMETRY)
int BPF_PROG(sent_btf, struct sk_buff *skb)
{
	return on_queue(ctx, skb);
}

/* ---- udp_received: a process takes a datagram ---- */

/* called with the arguments of skb_consume_udp() */
SEC("kprobe")
KM_HOOK(udp_received, TELEMETRY)
int BPF_KPROBE(received_slot, struct sock *sk, struct sk_buff *skb, int length)
{
	return on_udp_receive(ctx, sk, skb, length, KM_DNS_SLOT);
}

SEC("fentry/skb_consume_udp")
KM_HOOK(udp_received, TELEMETRY)
int BPF_PROG(received_fentry, struct sock *sk, struct sk_buff *skb, int length)
{
	return on_udp_receive(ctx, sk, skb, length, KM_DNS_OWN);
}

SEC("kprobe/skb_consume_udp")
KM_HOOK(udp_received, TELEMETRY)
int BPF_KPROBE(received_kprobe, struct sock *sk, struct sk_buff *skb, int length)
{
	return on_udp_receive(ctx, sk, skb, length, KM_DNS_OWN);
}

/* where that cannot be seen: it arrives */
SEC("tp_btf/netif_receive_skb")
KM_HOOK(udp_received, TELEMETRY)
int BPF_PROG(arriving_btf, struct sk_buff *skb)
{
	return on_arriving(skb);
}

SEC("tp_btf/sk_data_ready")
KM_HOOK(udp_received, TELEMETRY)
int BPF_PROG(received_btf, struct sock *sk)
{
	return on_arrived(ctx, sk);
}

SEC("tp_btf/sock_recv_length")
KM_HOOK(udp_received, TELEMETRY)
int BPF_PROG(reader_btf, struct sock *sk)
{
	return on_reader(sk);
}

/* ---- tcp_sent: a process writes ---- */

SEC("fentry/tcp_sendmsg")
KM_HOOK(tcp_sent, TELEMETRY)
int BPF_PROG(written_fentry, struct sock *sk, struct msghdr *message)
{
	return on_tcp_write(ctx, sk, message);
}

SEC("kprobe/tcp_sendmsg")
KM_HOOK(tcp_sent, TELEMETRY)
int BPF_KPROBE(written_kprobe, struct sock *sk, struct msghdr *message)
{
	return on_tcp_write(ctx, sk, message);
}

/* since 6.16 (0f08335ade71); for each packet that is filled, with what is left */
SEC("tp_btf/tcp_sendmsg_locked")
KM_HOOK(tcp_sent, TELEMETRY)
int BPF_PROG(written_btf, struct sock *sk, struct msghdr *message)
{
	return on_tcp_write(ctx, sk, message);
}

/* ---- tcp_received: a process reads, from one packet after the other ---- */

SEC("tp_btf/skb_copy_datagram_iovec")
KM_HOOK(tcp_received, TELEMETRY)
int BPF_PROG(read_btf, struct sk_buff *skb, int length)
{
	return on_tcp_read(ctx, skb, length);
}

SEC("fentry/skb_copy_datagram_iter")
KM_HOOK(tcp_received, TELEMETRY)
int BPF_PROG(read_fentry, struct sk_buff *skb, int skip, void *to, int length)
{
	return on_tcp_read(ctx, skb, length);
}

SEC("kprobe/skb_copy_datagram_iter")
KM_HOOK(tcp_received, TELEMETRY)
int BPF_KPROBE(read_kprobe, struct sk_buff *skb, int skip, void *to, int length)
{
	return on_tcp_read(ctx, skb, length);
}

KM_LICENSE;
