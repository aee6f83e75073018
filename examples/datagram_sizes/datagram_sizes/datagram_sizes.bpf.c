// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * hook    tag        alternatives
 * end     END        kprobe/security_sk_free
 * sent    TELEMETRY  kprobe/udp_sendmsg with kprobe/udpv6_sendmsg, which then call the slot
 *                    `datagram_sent`; tp_btf/sock_send_length (since Linux 6.3)
 * larger  TELEMETRY  the slot `datagram_sent`; tp_btf/sock_send_length
 */
#define KM_USE_TAIL_CALLS

#include <km/core_read.h>
#include <km/emit.h>
#include <km/entry.h>
#include <km/scratch.h>

#include <udp/open_socket.h>

#include "messages.h"

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_UDP 17

const volatile __u32 km_slot_datagram_sent = 0;

KM_SCRATCH(union km_datagram_sizes_messages);

/*
 * Exported: what each socket has sent, by its address.
 * inserted, written: hook sent. deleted: hook end, or the least recently used where that
 * is not to be had. read: hook larger; modules that import it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct km_datagram_sizes);
} datagram_sizes SEC(".maps");

struct sock_common___sizes {
	unsigned short skc_family;
} KM_CORE;

struct sock___sizes {
	struct sock_common___sizes __sk_common;
	__u16 sk_protocol;
} KM_CORE;

static __always_inline __u32 size_class(__u64 size)
{
	__u32 class = 0;

#pragma unroll
	for (__u32 i = 0; i < KM_SIZE_CLASSES - 1; i++)
		class += size > (KM_SMALLEST_CLASS << i);
	return class;
}

static __always_inline void on_sent(void *sk, __u64 cookie, __u64 size)
{
	struct km_datagram_sizes none = { .cookie = cookie }, *sizes;
	__u64 key = (__u64)sk;

	sizes = bpf_map_lookup_elem(&datagram_sizes, &key);
	if (!sizes || sizes->cookie != cookie) {
		bpf_map_update_elem(&datagram_sizes, &key, &none, sizes ? BPF_ANY : BPF_NOEXIST);
		sizes = bpf_map_lookup_elem(&datagram_sizes, &key);
	}
	if (sizes)
		km_add(&sizes->sent[size_class(size)], 1);
}

static __always_inline int on_larger(void *ctx, void *sk, __u64 size)
{
	struct km_datagram_sizes_larger message = { .size = size };
	__u32 class = size_class(size), larger = 0;
	struct km_udp_open_socket *socket;
	struct km_datagram_sizes *sizes;
	__u64 key = (__u64)sk;

	sizes = bpf_map_lookup_elem(&datagram_sizes, &key);
	if (!sizes || sizes->sent[class] != 1)
		return 0;
#pragma unroll
	for (__u32 i = 0; i < KM_SIZE_CLASSES; i++) {
		message.sent += sizes->sent[i];
		larger += i > class && sizes->sent[i];
	}
	if (larger)
		return 0;
	socket = bpf_map_lookup_elem(&udp_open_sockets, &key);
	if (socket)
		message.socket_id = socket->socket_id;
	message.pid = bpf_get_current_pid_tgid() >> 32;
	km_emit(ctx, &message.header, KM_DATAGRAM_SIZES_LARGER, sizeof(message));
	return 0;
}

SEC("kprobe/security_sk_free")
KM_HOOK(end, END)
int BPF_KPROBE(end_free, __u64 sk)
{
	bpf_map_delete_elem(&datagram_sizes, &sk);
	return 0;
}

/* An IPv6 socket that sends to an IPv4 address comes by here too, after the next one. */
SEC("kprobe/udp_sendmsg")
KM_HOOK(sent, TELEMETRY)
int BPF_KPROBE(sent_ipv4, struct sock___sizes *sk, void *msg, __u64 size)
{
	if (KM_READ_1(sk, __sk_common.skc_family) != AF_INET)
		return 0;
	on_sent(sk, 0, size);
	bpf_tail_call(ctx, &tail_calls, km_slot_datagram_sent);
	return 0;
}

SEC("kprobe/udpv6_sendmsg")
KM_HOOK(sent, TELEMETRY)
int BPF_KPROBE(sent_ipv6, struct sock___sizes *sk, void *msg, __u64 size)
{
	on_sent(sk, 0, size);
	bpf_tail_call(ctx, &tail_calls, km_slot_datagram_sent);
	return 0;
}

SEC("kprobe")
KM_HOOK(larger, TELEMETRY)
int BPF_KPROBE(larger_slot, void *sk, void *msg, __u64 size)
{
	return on_larger(ctx, sk, size);
}

/* of any protocol; negative is an error */
static __always_inline bool is_datagram(struct sock___sizes *sk, int size)
{
	return size >= 0 && KM_READ_1(sk, sk_protocol) == IPPROTO_UDP;
}

SEC("tp_btf/sock_send_length")
KM_HOOK(sent, TELEMETRY)
int BPF_PROG(sent_btf, struct sock___sizes *sk, int size)
{
	if (is_datagram(sk, size))
		on_sent(sk, bpf_get_socket_cookie(sk), size);
	return 0;
}

SEC("tp_btf/sock_send_length")
KM_HOOK(larger, TELEMETRY)
int BPF_PROG(larger_btf, struct sock___sizes *sk, int size)
{
	return is_datagram(sk, size) ? on_larger(ctx, sk, size) : 0;
}

KM_LICENSE;
