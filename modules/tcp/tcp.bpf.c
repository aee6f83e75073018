// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * TCP sockets: opened, established, their state and traffic, what timed out, resets,
 * closed, and those that were there before. Each hook has alternatives; the manifest
 * gives their order.
 *
 *	hook            tag        alternatives, in the order of preference
 *	end             END        tp_btf inet_sock_set_state and tcp_destroy_sock
 *	                           · fentry, kprobe tcp_set_state and security_sk_free
 *	                           · fentry, kprobe security_sk_free
 *	                           · fentry, kprobe inet_release
 *	create          START      fentry, kprobe tcp_init_sock
 *	connect         START      fentry, kprobe tcp_connect · tp_btf inet_sock_set_state
 *	listen          START      fexit inet_csk_listen_start · tp_btf inet_sock_set_state
 *	                           · kprobe inet_csk_listen_start
 *	accept          START      fentry, kprobe tcp_child_process and security_sock_graft
 *	                           · fexit inet_csk_accept · tp_btf inet_sock_set_state
 *	state           TELEMETRY  tp_btf inet_sock_set_state · fentry, kprobe tcp_set_state
 *	metrics         TELEMETRY  tp_btf tcp_probe · fentry, kprobe tcp_rcv_established
 *	                           · tp_btf tcp_rcv_space_adjust
 *	                           · fentry, kprobe tcp_event_data_recv
 *	syn_timeout     TELEMETRY  tp_btf tcp_retransmit_skb
 *	                           · fentry, kprobe tcp_retransmit_timer
 *	synack_timeout  TELEMETRY  tp_btf tcp_retransmit_synack
 *	                           · fentry, kprobe tcp_rtx_synack
 *	                           · fentry, kprobe tcp_syn_ack_timeout
 *	reset_received  TELEMETRY  tp_btf tcp_receive_reset · fentry, kprobe tcp_reset
 *	reset_sent      TELEMETRY  fentry tcp_send_active_reset, tcp_v4_send_reset and
 *	                           tcp_v6_send_reset · tp_btf tcp_send_reset
 *	                           · kprobe on the same functions
 *	existing        EXISTING   iter task_file · kprobe, fentry tcp4_seq_show and
 *	                           tcp6_seq_show
 *	existing_rest   EXISTING   iter tcp
 */
#define KM_USE_SEEN_INODES

#include "activity.h"
#include "lifetime.h"
#include "resets.h"

#include <km/entry.h>
#include <km/holders.h>

const volatile __u8 state_changes KM_DOC("0: do not report changes of state") = 1;

/* ---- end: whoever finds the socket closed reports; what was left behind goes too ---- */

static __always_inline int on_close(void *ctx, struct sock *sk, __u8 old)
{
	struct km_tcp_open_socket *socket = find(sk);

	if (!socket)
		return 0;
	socket->state = old;
	return end(ctx, sk);
}

SEC("tp_btf/inet_sock_set_state")
KM_HOOK(end, END)
int BPF_PROG(end_state_btf, struct sock *sk, int old, int new)
{
	return new == TCP_CLOSE ? on_close(ctx, sk, old) : 0;
}

SEC("tp_btf/tcp_destroy_sock")
KM_HOOK(end, END)
int BPF_PROG(end_destroy_btf, struct sock *sk)
{
	return end(ctx, sk);
}

SEC("fentry/tcp_set_state")
KM_HOOK(end, END)
int BPF_PROG(end_state_f, struct sock *sk, int new)
{
	return new == TCP_CLOSE ? on_close(ctx, sk, state_of(sk)) : 0;
}

SEC("kprobe/tcp_set_state")
KM_HOOK(end, END)
int BPF_KPROBE(end_state_k, struct sock *sk, int new)
{
	return new == TCP_CLOSE ? on_close(ctx, sk, state_of(sk)) : 0;
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

/* alone, the end is told as late as that */
SEC("fentry/security_sk_free")
KM_HOOK(end, END)
int BPF_PROG(end_late_f, struct sock *sk)
{
	return end(ctx, sk);
}

SEC("kprobe/security_sk_free")
KM_HOOK(end, END)
int BPF_KPROBE(end_late_k, struct sock *sk)
{
	return end(ctx, sk);
}

/* the last process closes it: what it has written may still be on its way */
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

/* ---- create: nothing is told of a socket that does nothing yet; but if its address is
 * in the table, the end of another one was missed ---- */

SEC("fentry/tcp_init_sock")
KM_HOOK(create, START)
int BPF_PROG(create_fentry, struct sock *sk)
{
	return end_missed(ctx, sk);
}

SEC("kprobe/tcp_init_sock")
KM_HOOK(create, START)
int BPF_KPROBE(create_kprobe, struct sock *sk)
{
	return end_missed(ctx, sk);
}

/* ---- connect: the SYN is about to be sent, from the port that was chosen for it ---- */

static __noinline struct km_tcp_open_socket *track_own(void *ctx, struct sock *sk,
						       enum km_tcp_role role)
{
	struct km_tcp_open_socket socket = { .role = role };

	if (!is_tcp(sk))
		return NULL;
	set_owner(&socket, current_task());
	return track(ctx, sk, &socket);
}

static __noinline int on_connect(void *ctx, struct sock *sk)
{
	struct km_tcp_open_socket *socket = find(sk);

	if (socket && socket->state != TCP_SYN_SENT)
		end_missed(ctx, sk);
	socket = track_own(ctx, sk, KM_TCP_CONNECT);
	if (socket)
		announce(ctx, sk, socket);
	return 0;
}

SEC("fentry/tcp_connect")
KM_HOOK(connect, START)
int BPF_PROG(connect_fentry, struct sock *sk)
{
	return on_connect(ctx, sk);
}

SEC("kprobe/tcp_connect")
KM_HOOK(connect, START)
int BPF_KPROBE(connect_kprobe, struct sock *sk)
{
	return on_connect(ctx, sk);
}

/* no port yet: remembered with its owner, and told of by what comes next */
SEC("tp_btf/inet_sock_set_state")
KM_HOOK(connect, START)
int BPF_PROG(connect_btf, struct sock *sk, int old, int new)
{
	struct km_tcp_open_socket *socket;

	if (new != TCP_SYN_SENT)
		return 0;
	end_missed(ctx, sk);
	socket = track_own(ctx, sk, KM_TCP_CONNECT);
	if (socket)
		socket->state = new;
	return 0;
}

/* ---- listen ---- */

static __noinline int on_listen(void *ctx, struct sock *sk)
{
	struct km_tcp_open_socket *socket = find(sk);

	if (socket && socket->state == TCP_LISTEN)
		return 0; /* a scan has found it meanwhile */
	end_missed(ctx, sk);
	socket = track_own(ctx, sk, KM_TCP_LISTEN);
	if (!socket)
		return 0;
	socket->state = TCP_LISTEN;
	announce(ctx, sk, socket);
	return 0;
}

/* at the return, where the port is known if nobody had chosen one */
SEC("fexit/inet_csk_listen_start")
KM_HOOK(listen, START)
int BPF_PROG(listen_fexit, struct sock *sk)
{
	return state_of(sk) == TCP_LISTEN ? on_listen(ctx, sk) : 0;
}

SEC("tp_btf/inet_sock_set_state")
KM_HOOK(listen, START)
int BPF_PROG(listen_btf, struct sock *sk, int old, int new)
{
	return new == TCP_LISTEN ? on_listen(ctx, sk) : 0;
}

SEC("kprobe/inet_csk_listen_start")
KM_HOOK(listen, START)
int BPF_KPROBE(listen_kprobe, struct sock *sk)
{
	return on_listen(ctx, sk);
}

/* ---- accept: a listener makes a child, and later a process accepts it ---- */

static __noinline int on_child(void *ctx, struct sock *listener, struct sock *child)
{
	struct km_tcp_open_socket socket = { .role = KM_TCP_ACCEPT }, *parent;

	if (!is_tcp(child))
		return 0;
	end_missed(ctx, child);
	parent = find(listener);
	if (parent) {
		socket.listener_id = parent->socket_id;
		/* until a process accepts it, if any does */
		socket.start_time = parent->start_time;
		socket.cgroup_id = parent->cgroup_id;
		socket.pid = parent->pid;
		mark_active(listener, parent);
	}
	track(ctx, child, &socket);
	return 0;
}

SEC("fentry/tcp_child_process")
KM_HOOK(accept, START)
int BPF_PROG(child_fentry, struct sock *listener, struct sock *child)
{
	return on_child(ctx, listener, child);
}

SEC("kprobe/tcp_child_process")
KM_HOOK(accept, START)
int BPF_KPROBE(child_kprobe, struct sock *listener, struct sock *child)
{
	return on_child(ctx, listener, child);
}

/* one that is closed already was told of, by its end */
static __noinline int on_accept(void *ctx, struct sock *sk, struct sock *listener)
{
	struct km_tcp_open_socket *socket, *parent = NULL;

	if (!is_tcp(sk) || state_of(sk) == TCP_CLOSE)
		return 0;
	socket = find(sk);
	if (socket)
		set_owner(socket, current_task());
	else
		socket = track_own(ctx, sk, KM_TCP_ACCEPT);
	if (!socket)
		return 0;
	if (listener)
		parent = find(listener);
	if (parent)
		socket->listener_id = parent->socket_id;
	announce(ctx, sk, socket);
	return 0;
}

/* accept(2) gives the child its struct socket; so do others, to what is no TCP */
SEC("fentry/security_sock_graft")
KM_HOOK(accept, START)
int BPF_PROG(accept_fentry, struct sock *sk)
{
	return on_accept(ctx, sk, NULL);
}

SEC("kprobe/security_sock_graft")
KM_HOOK(accept, START)
int BPF_KPROBE(accept_kprobe, struct sock *sk)
{
	return on_accept(ctx, sk, NULL);
}

/* the result follows the arguments, of which there were four until 6.9 (92ef0fd55ac8) */
SEC("fexit/inet_csk_accept")
KM_HOOK(accept, START)
int BPF_PROG(accept_fexit, struct sock *listener)
{
	bool two = km_type_exists(struct proto_accept_arg);
	struct sock *child = NULL;

	/* not by an index, which the verifier wants to be in the instruction */
	bpf_probe_read_kernel(&child, sizeof(child), two ? &ctx[2] : &ctx[4]);
	return child ? on_accept(ctx, child, listener) : 0;
}

/* who accepts is not known here, nor for whom it was made: the handler finds a listener */
SEC("tp_btf/inet_sock_set_state")
KM_HOOK(accept, START)
int BPF_PROG(accept_btf, struct sock *sk, int old, int new)
{
	struct km_tcp_open_socket child = { .role = KM_TCP_ACCEPT }, *socket;

	if (old != TCP_SYN_RECV || new != TCP_ESTABLISHED || !is_tcp(sk))
		return 0;
	socket = find(sk);
	if (socket && socket->role == KM_TCP_CONNECT && socket->state == old)
		return 0; /* both sides have connected */
	end_missed(ctx, sk);
	socket = track(ctx, sk, &child);
	if (!socket)
		return 0;
	socket->state = new;
	announce(ctx, sk, socket);
	return 0;
}

/* ---- state ---- */

static __always_inline void write_ipv4(void *ctx, const struct km_tcp_subject *subject, __u8 old,
				       __u64 handshake)
{
	struct km_tcp_set_state_ipv4 message = {
		.socket_id = subject->socket_id,
		.start_time = subject->start_time,
		.cgroup_id = subject->cgroup_id,
		.pid = subject->pid,
		.netns = subject->netns,
		.local_port = subject->local_port,
		.remote_port = subject->remote_port,
		.role = subject->role,
		.state = subject->state,
		.old_state = old,
		.handshake = handshake,
	};

	__builtin_memcpy(&message.local_address, subject->local_address, 4);
	__builtin_memcpy(&message.remote_address, subject->remote_address, 4);
	km_emit(ctx, &message.header, KM_TCP_SET_STATE_IPV4, sizeof(message));
}

static __always_inline void write_ipv6(void *ctx, const struct km_tcp_subject *subject, __u8 old,
				       __u64 handshake)
{
	struct km_tcp_set_state_ipv6 message = {
		.socket_id = subject->socket_id,
		.start_time = subject->start_time,
		.cgroup_id = subject->cgroup_id,
		.pid = subject->pid,
		.netns = subject->netns,
		.local_port = subject->local_port,
		.remote_port = subject->remote_port,
		.role = subject->role,
		.state = subject->state,
		.old_state = old,
		.handshake = handshake,
	};

	__builtin_memcpy(message.local_address, subject->local_address, sizeof(km_ipv6));
	__builtin_memcpy(message.remote_address, subject->remote_address, sizeof(km_ipv6));
	km_emit(ctx, &message.header, KM_TCP_SET_STATE_IPV6, sizeof(message));
}

static __noinline int write_state(void *ctx, struct sock *sk,
				  const struct km_tcp_open_socket *socket, int old)
{
	struct km_tcp_subject subject = {};
	__u64 handshake = 0;

	fill_subject(&subject, sk, socket);
	if (socket->role == KM_TCP_CONNECT && socket->state == TCP_ESTABLISHED &&
	    !(socket->flags & KM_TCP_EXISTING))
		handshake = bpf_ktime_get_ns() - socket->opened;
	if (subject.family == 4)
		write_ipv4(ctx, &subject, old, handshake);
	else
		write_ipv6(ctx, &subject, old, handshake);
	return 0;
}

static __noinline int on_state(void *ctx, struct sock *sk, int old, int new)
{
	struct km_tcp_open_socket *socket;

	if (new == TCP_CLOSE)
		return 0;
	socket = find(sk);
	if (!socket)
		return 0;
	if (!socket->closed_first && new == TCP_FIN_WAIT1)
		socket->closed_first = KM_TCP_LOCAL;
	if (!socket->closed_first && new == TCP_CLOSE_WAIT)
		socket->closed_first = KM_TCP_REMOTE;
	if (socket->role == KM_TCP_CONNECT && new != TCP_SYN_SENT)
		announce(ctx, sk, socket);
	if (socket->state == new)
		return 0; /* the program that has announced it knew */
	socket->state = new;
	if (socket->flags & KM_TCP_ANNOUNCED && (state_changes || new == TCP_ESTABLISHED))
		write_state(ctx, sk, socket, old);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
KM_HOOK(state, TELEMETRY)
int BPF_PROG(state_btf, struct sock *sk, int old, int new)
{
	return on_state(ctx, sk, old, new);
}

SEC("fentry/tcp_set_state")
KM_HOOK(state, TELEMETRY)
int BPF_PROG(state_fentry, struct sock *sk, int new)
{
	return on_state(ctx, sk, state_of(sk), new);
}

SEC("kprobe/tcp_set_state")
KM_HOOK(state, TELEMETRY)
int BPF_KPROBE(state_kprobe, struct sock *sk, int new)
{
	return on_state(ctx, sk, state_of(sk), new);
}

/* ---- metrics: what comes in, data or acknowledgement, says that a socket is active ---- */

SEC("tp_btf/tcp_probe")
KM_HOOK(metrics, TELEMETRY)
int BPF_PROG(metrics_btf, struct sock *sk)
{
	return on_active(sk);
}

SEC("fentry/tcp_rcv_established")
KM_HOOK(metrics, TELEMETRY)
int BPF_PROG(metrics_fentry, struct sock *sk)
{
	return on_active(sk);
}

SEC("kprobe/tcp_rcv_established")
KM_HOOK(metrics, TELEMETRY)
int BPF_KPROBE(metrics_kprobe, struct sock *sk)
{
	return on_active(sk);
}

/* when the process has read */
SEC("tp_btf/tcp_rcv_space_adjust")
KM_HOOK(metrics, TELEMETRY)
int BPF_PROG(metrics_read_btf, struct sock *sk)
{
	return on_active(sk);
}

SEC("fentry/tcp_event_data_recv")
KM_HOOK(metrics, TELEMETRY)
int BPF_PROG(metrics_data_f, struct sock *sk)
{
	return on_active(sk);
}

SEC("kprobe/tcp_event_data_recv")
KM_HOOK(metrics, TELEMETRY)
int BPF_KPROBE(metrics_data_k, struct sock *sk)
{
	return on_active(sk);
}

/* the handler runs it, once per interval and as often as it takes */
SEC("raw_tp")
int report_active(void *ctx)
{
	return write_active(ctx);
}

/* ---- SYN and SYN-ACK that are sent again ---- */

static __noinline int write_syn_timeout(void *ctx, struct sock *sk, __u32 retransmits)
{
	struct km_tcp_open_socket *socket = find(sk);
	struct km_tcp_tcp_syn_timeout message = {};

	if (!socket || !announce(ctx, sk, socket))
		return 0;
	fill_subject((struct km_tcp_subject *)&message, sk, socket);
	message.retransmits = retransmits;
	km_emit(ctx, &message.header, KM_TCP_TCP_SYN_TIMEOUT, sizeof(message));
	return 0;
}

/* it has been counted */
SEC("tp_btf/tcp_retransmit_skb")
KM_HOOK(syn_timeout, TELEMETRY)
int BPF_PROG(syn_timeout_btf, struct sock *sk)
{
	if (state_of(sk) != TCP_SYN_SENT)
		return 0;
	return write_syn_timeout(ctx, sk, km_read((struct tcp_sock *)sk, total_retrans));
}

/* it will be counted, unless it was the last */
static __always_inline int on_retransmit_timer(void *ctx, struct sock *sk)
{
	if (state_of(sk) != TCP_SYN_SENT)
		return 0;
	return write_syn_timeout(ctx, sk, km_read((struct tcp_sock *)sk, total_retrans) + 1);
}

SEC("fentry/tcp_retransmit_timer")
KM_HOOK(syn_timeout, TELEMETRY)
int BPF_PROG(syn_timeout_f, struct sock *sk)
{
	return on_retransmit_timer(ctx, sk);
}

SEC("kprobe/tcp_retransmit_timer")
KM_HOOK(syn_timeout, TELEMETRY)
int BPF_KPROBE(syn_timeout_k, struct sock *sk)
{
	return on_retransmit_timer(ctx, sk);
}

static __noinline int write_synack_timeout(void *ctx, struct sock *listener,
					   struct request_sock *request, __u32 retransmits)
{
	struct km_tcp_tcp_synack_timeout message = {};
	struct km_tcp_open_socket *socket = find(listener);

	if (socket && !announce(ctx, listener, socket))
		return 0;
	if (socket)
		fill_identity((struct km_tcp_subject *)&message, socket);
	fill_endpoints(km_endpoints_of(&message), km_address(request, __req_common));
	message.netns = km_read(request, __req_common.skc_net.net, ns.inum);
	message.state = TCP_NEW_SYN_RECV;
	message.retransmits = retransmits;
	km_emit(ctx, &message.header, KM_TCP_TCP_SYNACK_TIMEOUT, sizeof(message));
	return 0;
}

/*
 * A SYN-ACK is sent again when its timer expires, and when the SYN comes again. Both go
 * through tcp_rtx_synack(), which counts at its end or, before 6.17 (cf56a9820297), when
 * it has returned: so num_retrans is one less here. No lock keeps the two apart; if both
 * happen at the same moment, both bear the same number.
 */
static __always_inline int on_synack(void *ctx, struct sock *listener, struct request_sock *request)
{
	return write_synack_timeout(ctx, listener, request, km_read(request, num_retrans) + 1);
}

SEC("tp_btf/tcp_retransmit_synack")
KM_HOOK(synack_timeout, TELEMETRY)
int BPF_PROG(synack_btf, struct sock *listener, struct request_sock *request)
{
	return on_synack(ctx, listener, request);
}

SEC("fentry/tcp_rtx_synack")
KM_HOOK(synack_timeout, TELEMETRY)
int BPF_PROG(synack_fentry, struct sock *listener, struct request_sock *request)
{
	return on_synack(ctx, listener, request);
}

SEC("kprobe/tcp_rtx_synack")
KM_HOOK(synack_timeout, TELEMETRY)
int BPF_KPROBE(synack_kprobe, struct sock *listener, struct request_sock *request)
{
	return on_synack(ctx, listener, request);
}

/* of the timer only, before it is known whether anything will be sent */
SEC("fentry/tcp_syn_ack_timeout")
KM_HOOK(synack_timeout, TELEMETRY)
int BPF_PROG(synack_timer_f, struct request_sock *request)
{
	return on_synack(ctx, km_read(request, __req_common.skc_listener), request);
}

SEC("kprobe/tcp_syn_ack_timeout")
KM_HOOK(synack_timeout, TELEMETRY)
int BPF_KPROBE(synack_timer_k, struct request_sock *request)
{
	return on_synack(ctx, km_read(request, __req_common.skc_listener), request);
}

/* ---- resets ---- */

SEC("tp_btf/tcp_receive_reset")
KM_HOOK(reset_received, TELEMETRY)
int BPF_PROG(reset_rx_btf, struct sock *sk)
{
	return write_reset(ctx, sk, KM_TCP_RECEIVED, KM_TCP_NO_REASON);
}

SEC("fentry/tcp_reset")
KM_HOOK(reset_received, TELEMETRY)
int BPF_PROG(reset_rx_fentry, struct sock *sk)
{
	return write_reset(ctx, sk, KM_TCP_RECEIVED, KM_TCP_NO_REASON);
}

SEC("kprobe/tcp_reset")
KM_HOOK(reset_received, TELEMETRY)
int BPF_KPROBE(reset_rx_kprobe, struct sock *sk)
{
	return write_reset(ctx, sk, KM_TCP_RECEIVED, KM_TCP_NO_REASON);
}

/* the reason came with 6.10 (b533fb9cf4f7), and its type with it */
#define km_reason_of(argument) \
	(km_type_exists(enum sk_rst_reason) ? reason_of((__u64)(argument)) : KM_TCP_NO_REASON)

/* with either no packet or, for some answers, no socket */
SEC("tp_btf/tcp_send_reset")
KM_HOOK(reset_sent, TELEMETRY)
int BPF_PROG(reset_tx_btf, struct sock *sk, struct sk_buff *skb)
{
	struct sk_buff *packet = untyped(skb);
	struct sock *socket = untyped(sk);

	if (packet)
		return on_answer(ctx, socket, packet, km_reason_of(ctx[2]));
	return write_reset(ctx, socket, KM_TCP_SENT, km_reason_of(ctx[2]));
}

/* the last argument: the third since 6.10 (5691276b39da), the second on 7.3 */
static __always_inline int last_reason(void *ctx)
{
	__u64 reason = 0;

	if (!km_type_exists(enum sk_rst_reason))
		return KM_TCP_NO_REASON;
	bpf_get_func_arg(ctx, bpf_get_func_arg_cnt(ctx) - 1, &reason);
	return reason_of(reason);
}

/* resets that end a connection, and those that answer a segment */
SEC("fentry/tcp_send_active_reset")
KM_HOOK(reset_sent, TELEMETRY)
int BPF_PROG(reset_tx_fentry, struct sock *sk)
{
	return write_reset(ctx, sk, KM_TCP_SENT, last_reason(ctx));
}

SEC("fentry/tcp_v4_send_reset")
KM_HOOK(reset_sent, TELEMETRY)
int BPF_PROG(answer4_fentry, struct sock *sk, struct sk_buff *skb)
{
	return on_answer(ctx, sk, skb, last_reason(ctx));
}

SEC("fentry/tcp_v6_send_reset")
KM_HOOK(reset_sent, TELEMETRY)
int BPF_PROG(answer6_fentry, struct sock *sk, struct sk_buff *skb)
{
	return on_answer(ctx, sk, skb, last_reason(ctx));
}

/* which argument is the last, a kprobe cannot ask */
SEC("kprobe/tcp_send_active_reset")
KM_HOOK(reset_sent, TELEMETRY)
int BPF_KPROBE(reset_tx_kprobe, struct sock *sk)
{
	return write_reset(ctx, sk, KM_TCP_SENT, KM_TCP_NO_REASON);
}

SEC("kprobe/tcp_v4_send_reset")
KM_HOOK(reset_sent, TELEMETRY)
int BPF_KPROBE(answer4_kprobe, struct sock *sk, struct sk_buff *skb)
{
	return on_answer(ctx, sk, skb, KM_TCP_NO_REASON);
}

SEC("kprobe/tcp_v6_send_reset")
KM_HOOK(reset_sent, TELEMETRY)
int BPF_KPROBE(answer6_kprobe, struct sock *sk, struct sk_buff *skb)
{
	return on_answer(ctx, sk, skb, KM_TCP_NO_REASON);
}

/* ---- existing ---- */

/* a child that was copied from a listener has its backlog; nobody gives one to others */
static __always_inline enum km_tcp_role role_of(struct sock *sk, __u8 state)
{
	if (state == TCP_LISTEN)
		return KM_TCP_LISTEN;
	return km_read(sk, sk_max_ack_backlog) ? KM_TCP_ACCEPT : KM_TCP_CONNECT;
}

static __always_inline enum km_tcp_side side_in(__u8 state)
{
	if (state == TCP_CLOSE_WAIT || state == TCP_LAST_ACK)
		return KM_TCP_REMOTE;
	return has_sent_fin(state) ? KM_TCP_LOCAL : KM_TCP_NO_SIDE;
}

/* of a child in SYN_RECV the START hook has still to hear */
static __always_inline bool is_open(__u8 state)
{
	return state && state != TCP_CLOSE && state != TCP_TIME_WAIT && state != TCP_SYN_RECV &&
	       state != TCP_NEW_SYN_RECV;
}

/* returns whether this call reported the socket; `found` has its owner if that is known */
static __noinline bool on_found(void *ctx, struct sock *sk, struct km_tcp_open_socket *found)
{
	struct km_tcp_open_socket *socket;
	__u8 state = state_of(sk);

	/* without a port it is about to connect, and its start will be told */
	if (!is_open(state) || !is_tcp(sk) || !km_read(sk, __sk_common.skc_num) || find(sk))
		return false;
	found->role = role_of(sk, state);
	found->closed_first = side_in(state);
	found->flags = KM_TCP_EXISTING;
	if (!track(ctx, sk, found))
		return false;
	if (!is_open(state_of(sk))) {
		forget(sk, found->socket_id);
		return false;
	}
	/* nothing holds the socket here: what is written is the copy, not the entry */
	if (write_start(ctx, sk, found)) {
		forget(sk, found->socket_id);
		return false;
	}
	socket = find(sk);
	if (socket && socket->socket_id == found->socket_id)
		socket->flags |= KM_TCP_ANNOUNCED;
	if (found->role != KM_TCP_LISTEN)
		write_counters(ctx, sk, found, KM_TCP_RESET_TCP_COUNTERS);
	return true;
}

/* every file of every process, whatever network namespace a socket is in */
SEC("iter/task_file")
KM_HOOK(existing, EXISTING)
int existing_files(struct bpf_iter__task_file *ctx)
{
	struct km_tcp_open_socket found = {};
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

/* what no process has: not yet accepted, closed but not at its end; of one namespace */
SEC("iter/tcp")
KM_HOOK(existing_rest, EXISTING)
int existing_tcp(struct bpf_iter__tcp *ctx)
{
	struct km_tcp_open_socket found = {};
	struct sock *sk = (struct sock *)ctx->sk_common;

	if (sk && on_found(ctx, sk, &found))
		km_iter_step(ctx->meta);
	return 0;
}

/* a line of /proc/PID/net/tcp; the first is a heading, and some are no sockets */
static __noinline int on_seq_show(void *ctx, struct sock *sk)
{
	struct km_tcp_open_socket found = {};

	if ((__u64)sk <= 1 || !is_open(state_of(sk)))
		return 0;
	found.pid = holder_of(sk);
	on_found(ctx, sk, &found);
	return 0;
}

SEC("kprobe/tcp4_seq_show")
KM_HOOK(existing, EXISTING)
int BPF_KPROBE(existing4_kpro, struct seq_file *seq, struct sock *sk)
{
	return on_seq_show(ctx, sk);
}

SEC("kprobe/tcp6_seq_show")
KM_HOOK(existing, EXISTING)
int BPF_KPROBE(existing6_kpro, struct seq_file *seq, struct sock *sk)
{
	return on_seq_show(ctx, sk);
}

SEC("fentry/tcp4_seq_show")
KM_HOOK(existing, EXISTING)
int BPF_PROG(existing4_fent, struct seq_file *seq, struct sock *sk)
{
	return on_seq_show(ctx, sk);
}

SEC("fentry/tcp6_seq_show")
KM_HOOK(existing, EXISTING)
int BPF_PROG(existing6_fent, struct seq_file *seq, struct sock *sk)
{
	return on_seq_show(ctx, sk);
}

KM_LICENSE;
