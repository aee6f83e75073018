// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * UDP sockets: given a port, their traffic with each peer, what they dropped, closed, and
 * those that were there before. Each hook has alternatives; the manifest gives their order.
 *
 *	hook           tag        alternatives, in the order of preference
 *	end            END        fentry, kprobe inet_release and security_sk_free
 *	                          · fentry, kprobe inet_release
 *	                          · tp_btf kmem_cache_free, twice
 *	create         START      fentry, kprobe security_sk_alloc
 *	bind           START      fexit, kretprobe udp_v4_get_port and udp_v6_get_port
 *	                          · tp_btf sock_send_length and sock_recv_length
 *	send           TELEMETRY  fentry, kprobe udp_send_skb and udp_v6_send_skb
 *	                          · fentry, kprobe ip_send_skb and ip6_send_skb
 *	                          · tp_btf net_dev_queue
 *	receive        TELEMETRY  fentry, kprobe skb_consume_udp
 *	                          · tp_btf sock_recv_length and consume_skb
 *	drop           TELEMETRY  tp_btf udp_fail_queue_rcv_skb
 *	existing       EXISTING   iter task_file · kprobe, fentry udp4_seq_show and
 *	                          udp6_seq_show
 *	existing_rest  EXISTING   iter udp
 *
 * The kprobes on udp_send_skb, udp_v6_send_skb and skb_consume_udp end in the slots
 * udp_sent and udp_received, where another module may take the same packet.
 */
#define KM_USE_SEEN_INODES
#define KM_USE_TAIL_CALLS

#include "packets.h"

#include <km/entry.h>
#include <km/holders.h>

const volatile __u32 km_slot_udp_sent = 0;
const volatile __u32 km_slot_udp_received = 0;

/* ---- end: the last process closes it; what a scan has met on its way down goes later ---- */

SEC("fentry/inet_release")
KM_HOOK(end, END)
int BPF_PROG(end_fentry, struct socket *sock)
{
	return end(ctx, km_read(sock, sk));
}

SEC("kprobe/inet_release")
KM_HOOK(end, END)
int BPF_KPROBE(end_kprobe, struct socket *sock)
{
	return end(ctx, km_read(sock, sk));
}

/* the last that happens to a socket; its memory is still its own */
SEC("fentry/security_sk_free")
KM_HOOK(end, END)
int BPF_PROG(end_free_f, struct sock *sk)
{
	return end(ctx, sk);
}

SEC("kprobe/security_sk_free")
KM_HOOK(end, END)
int BPF_KPROBE(end_free_k, struct sock *sk)
{
	return end(ctx, sk);
}

/* alone, where the kernel has no security modules for the network */
SEC("fentry/inet_release")
KM_HOOK(end, END)
int BPF_PROG(end_release_f, struct socket *sock)
{
	return end(ctx, km_read(sock, sk));
}

SEC("kprobe/inet_release")
KM_HOOK(end, END)
int BPF_KPROBE(end_release_k, struct socket *sock)
{
	return end(ctx, km_read(sock, sk));
}

/* the second argument; 5.10 lets no program load a pointer to no type */
static __always_inline struct sock *freed_memory(void *ctx)
{
	struct sock *memory = NULL;

	bpf_probe_read_kernel(&memory, sizeof(memory), (__u64 *)ctx + 1);
	return memory;
}

/* whatever memory is given back to a slab: the table knows which was a socket */
SEC("tp_btf/kmem_cache_free")
KM_HOOK(end, END)
int BPF_PROG(end_slab_btf)
{
	return end(ctx, freed_memory(ctx));
}

/*
 * The same once more: bound sockets are freed in an interrupt, and what one of the two
 * cannot see because it was interrupted, the other one does.
 */
SEC("tp_btf/kmem_cache_free")
KM_HOOK(end, END)
int BPF_PROG(end_again_btf)
{
	return end(ctx, freed_memory(ctx));
}

/* ---- create: nothing is told of a socket without a port ---- */

SEC("fentry/security_sk_alloc")
KM_HOOK(create, START)
int BPF_PROG(create_fentry, struct sock *sk)
{
	return end_missed(ctx, sk);
}

SEC("kprobe/security_sk_alloc")
KM_HOOK(create, START)
int BPF_KPROBE(create_kprobe, struct sock *sk)
{
	return end_missed(ctx, sk);
}

/* ---- bind: by bind(2), connect(2), or the first send ---- */

static __always_inline int on_port(void *ctx, struct sock *sk, int error)
{
	/* one that is there already was bound again */
	return error || find(sk) ? 0 : open_own(ctx, sk, KM_UDP_BOUND);
}

SEC("fexit/udp_v4_get_port")
KM_HOOK(bind, START)
int BPF_PROG(bind4_fexit, struct sock *sk, unsigned short port, int error)
{
	return on_port(ctx, sk, error);
}

SEC("fexit/udp_v6_get_port")
KM_HOOK(bind, START)
int BPF_PROG(bind6_fexit, struct sock *sk, unsigned short port, int error)
{
	return on_port(ctx, sk, error);
}

/*
 * Sockets that are being given a port, by thread: what runs on a CPU may be another one
 * at the return.
 * inserted: at the entry. deleted, read: at the return. What never returned goes by age.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u64);
} binding_sockets SEC(".maps");

static __always_inline int before_port(struct sock *sk)
{
	__u64 thread = bpf_get_current_pid_tgid(), value = (__u64)sk;

	bpf_map_update_elem(&binding_sockets, &thread, &value, BPF_ANY);
	return 0;
}

static __always_inline int after_port(void *ctx, int error)
{
	__u64 thread = bpf_get_current_pid_tgid();
	__u64 *found = bpf_map_lookup_elem(&binding_sockets, &thread), sk;

	if (!found)
		return 0;
	sk = *found;
	bpf_map_delete_elem(&binding_sockets, &thread);
	return on_port(ctx, (struct sock *)sk, error);
}

SEC("kprobe/udp_v4_get_port")
KM_HOOK(bind, START)
int BPF_KPROBE(bind4_entry, struct sock *sk)
{
	return before_port(sk);
}

SEC("kprobe/udp_v6_get_port")
KM_HOOK(bind, START)
int BPF_KPROBE(bind6_entry, struct sock *sk)
{
	return before_port(sk);
}

SEC("kretprobe/udp_v4_get_port")
KM_HOOK(bind, START)
int BPF_KRETPROBE(bind4_return, int error)
{
	return after_port(ctx, error);
}

SEC("kretprobe/udp_v6_get_port")
KM_HOOK(bind, START)
int BPF_KRETPROBE(bind6_return, int error)
{
	return after_port(ctx, error);
}

/* nothing is there to see it getting a port; but it has one by now */
static __always_inline int on_used(void *ctx, struct sock *sk)
{
	end_former(ctx, sk);
	return !find(sk) && km_read(sk, __sk_common.skc_num) ? open_own(ctx, sk, KM_UDP_USED) : 0;
}

SEC("tp_btf/sock_send_length")
KM_HOOK(bind, START)
int BPF_PROG(used_send_btf, struct sock *sk)
{
	return on_used(ctx, sk);
}

SEC("tp_btf/sock_recv_length")
KM_HOOK(bind, START)
int BPF_PROG(used_recv_btf, struct sock *sk)
{
	return on_used(ctx, sk);
}

/* ---- send ---- */

SEC("fentry/udp_send_skb")
KM_HOOK(send, TELEMETRY)
int BPF_PROG(send4_fentry, struct sk_buff *skb, struct flowi4 *flow, struct inet_cork *cork)
{
	return on_send_ipv4(ctx, skb, flow, cork);
}

SEC("fentry/udp_v6_send_skb")
KM_HOOK(send, TELEMETRY)
int BPF_PROG(send6_fentry, struct sk_buff *skb, struct flowi6 *flow, struct inet_cork *cork)
{
	return on_send_ipv6(ctx, skb, flow, cork);
}

SEC("kprobe/udp_send_skb")
KM_HOOK(send, TELEMETRY)
int BPF_KPROBE(send4_kprobe, struct sk_buff *skb, struct flowi4 *flow, struct inet_cork *cork)
{
	on_send_ipv4(ctx, skb, flow, cork);
	bpf_tail_call(ctx, &tail_calls, km_slot_udp_sent);
	return 0;
}

SEC("kprobe/udp_v6_send_skb")
KM_HOOK(send, TELEMETRY)
int BPF_KPROBE(send6_kprobe, struct sk_buff *skb, struct flowi6 *flow, struct inet_cork *cork)
{
	on_send_ipv6(ctx, skb, flow, cork);
	bpf_tail_call(ctx, &tail_calls, km_slot_udp_sent);
	return 0;
}

SEC("fentry/ip_send_skb")
KM_HOOK(send, TELEMETRY)
int BPF_PROG(whole4_fentry, struct net *net, struct sk_buff *skb)
{
	return on_send_whole(ctx, skb);
}

SEC("fentry/ip6_send_skb")
KM_HOOK(send, TELEMETRY)
int BPF_PROG(whole6_fentry, struct sk_buff *skb)
{
	return on_send_whole(ctx, skb);
}

SEC("kprobe/ip_send_skb")
KM_HOOK(send, TELEMETRY)
int BPF_KPROBE(whole4_kprobe, struct net *net, struct sk_buff *skb)
{
	return on_send_whole(ctx, skb);
}

SEC("kprobe/ip6_send_skb")
KM_HOOK(send, TELEMETRY)
int BPF_KPROBE(whole6_kprobe, struct sk_buff *skb)
{
	return on_send_whole(ctx, skb);
}

SEC("tp_btf/net_dev_queue")
KM_HOOK(send, TELEMETRY)
int BPF_PROG(queue_btf, struct sk_buff *skb)
{
	return on_queue(ctx, skb);
}

/* ---- receive: when a process has read it ---- */

SEC("fentry/skb_consume_udp")
KM_HOOK(receive, TELEMETRY)
int BPF_PROG(receive_fentry, struct sock *sk, struct sk_buff *skb, int length)
{
	return is_peeked(skb, length) ? 0 : on_receive(ctx, sk, skb);
}

SEC("kprobe/skb_consume_udp")
KM_HOOK(receive, TELEMETRY)
int BPF_KPROBE(receive_kprobe, struct sock *sk, struct sk_buff *skb, int length)
{
	if (is_peeked(skb, length))
		return 0;
	on_receive(ctx, sk, skb);
	bpf_tail_call(ctx, &tail_calls, km_slot_udp_received);
	return 0;
}

/* the same without the slot: arm64 allows no tail calls beside subprograms before 6.0 */
SEC("kprobe/skb_consume_udp")
KM_HOOK(receive, TELEMETRY)
int BPF_KPROBE(receive_alone_k, struct sock *sk, struct sk_buff *skb, int length)
{
	return is_peeked(skb, length) ? 0 : on_receive(ctx, sk, skb);
}

SEC("tp_btf/consume_skb")
KM_HOOK(receive, TELEMETRY)
int BPF_PROG(consumed_btf, struct sk_buff *skb)
{
	return on_consumed(skb);
}

SEC("tp_btf/sock_recv_length")
KM_HOOK(receive, TELEMETRY)
int BPF_PROG(receive_btf, struct sock *sk, int size, int flags)
{
	return on_received(ctx, sk, size, flags);
}

/* ---- drop ---- */

SEC("tp_btf/udp_fail_queue_rcv_skb")
KM_HOOK(drop, TELEMETRY)
int BPF_PROG(drop_btf, int error, struct sock *sk)
{
	return on_drop(ctx, sk);
}

/* the handler runs it, once per interval and as often as it takes */
SEC("raw_tp")
int report_traffic(void *ctx)
{
	return write_flows(ctx);
}

#define KM_UDP_CHECKED 12 /* as many arguments as a run may have */

/* the handler runs it with sockets' addresses, where some are freed unseen; 0: no address */
SEC("raw_tp")
int check_open(__u64 *addresses)
{
	for (int i = 0; i < KM_UDP_CHECKED; i++)
		end_gone(addresses, (struct sock *)addresses[i]);
	return 0;
}

/* ---- existing ---- */

static __always_inline bool is_open(struct sock *sk)
{
	return km_read(sk, __sk_common.skc_num) && !km_sock_flag(sk, SOCK_DEAD);
}

/* returns whether this call reported the socket; `found` has its owner if that is known */
static __noinline bool on_found(void *ctx, struct sock *sk, struct km_udp_open_socket *found)
{
	if (!is_udp(sk) || !is_open(sk) || find(sk))
		return false;
	found->origin = KM_UDP_FOUND;
	if (!track(ctx, sk, found))
		return false;
	if (!is_open(sk)) {
		forget(sk, found->socket_id);
		return false;
	}
	/* nothing holds the socket here: what is written is the copy, not the entry */
	return announce(ctx, sk, found);
}

/* every file of every process, whatever network namespace a socket is in */
SEC("iter/task_file")
KM_HOOK(existing, EXISTING)
int existing_files(struct bpf_iter__task_file *ctx)
{
	struct km_udp_open_socket found = {};
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct sock *sk;

	if (!task || !file)
		return 0;
	sk = sock_of(file);
	if (!sk)
		return 0;
	set_owner(&found, task);
	if (on_found(ctx, sk, &found))
		km_iter_step(ctx->meta);
	return 0;
}

/* what no process has, as the kernel's own; of one namespace */
SEC("iter/udp")
KM_HOOK(existing_rest, EXISTING)
int existing_udp(struct bpf_iter__udp *ctx)
{
	struct km_udp_open_socket found = {};
	struct sock *sk = ctx->udp_sk;

	if (sk && on_found(ctx, sk, &found))
		km_iter_step(ctx->meta);
	return 0;
}

/* a line of /proc/PID/net/udp; the first is a heading */
static __noinline int on_seq_show(void *ctx, struct sock *sk)
{
	struct km_udp_open_socket found = {};

	if ((__u64)sk <= 1)
		return 0;
	found.pid = holder_of(sk);
	on_found(ctx, sk, &found);
	return 0;
}

SEC("kprobe/udp4_seq_show")
KM_HOOK(existing, EXISTING)
int BPF_KPROBE(existing4_kpro, struct seq_file *seq, struct sock *sk)
{
	return on_seq_show(ctx, sk);
}

SEC("kprobe/udp6_seq_show")
KM_HOOK(existing, EXISTING)
int BPF_KPROBE(existing6_kpro, struct seq_file *seq, struct sock *sk)
{
	return on_seq_show(ctx, sk);
}

SEC("fentry/udp4_seq_show")
KM_HOOK(existing, EXISTING)
int BPF_PROG(existing4_fent, struct seq_file *seq, struct sock *sk)
{
	return on_seq_show(ctx, sk);
}

SEC("fentry/udp6_seq_show")
KM_HOOK(existing, EXISTING)
int BPF_PROG(existing6_fent, struct seq_file *seq, struct sock *sk)
{
	return on_seq_show(ctx, sk);
}

KM_LICENSE;
