/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What the kernel has counted for a socket, and what that says.
 *
 * Its byte counters follow sequence numbers, in which SYN and FIN take a place:
 *
 *	bytes_acked     counts our SYN if we connected (a child begins behind it), and
 *	                our FIN once it is acknowledged
 *	write_seq       is behind our FIN from the moment that it is queued: in every
 *	                state that close(2) or shutdown(2) leads to, after its change
 *	bytes_received  counts the other side's FIN, when SOCK_DONE is set
 *
 * Until it is established, nothing was written.
 *
 * So what the process has written is what was acknowledged and what is between
 * snd_una and write_seq, less these two; a reset changes neither. The difference
 * of two sequence numbers is exact while less than 4 GiB are on their way.
 */
#ifndef KM_TCP_METRICS_H
#define KM_TCP_METRICS_H

#include "messages.h"
#include "sock.h"

/* whether write_seq is behind a FIN */
static __always_inline bool has_sent_fin(__u8 state)
{
	return state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2 || state == TCP_CLOSING ||
	       state == TCP_LAST_ACK || state == TCP_TIME_WAIT;
}

static __always_inline void fill_bytes(struct km_tcp_rtt_estimator *message, struct tcp_sock *tcp)
{
	bool fin = has_sent_fin(message->state);
	__u32 on_the_way = km_read(tcp, write_seq) - km_read(tcp, snd_una);
	__u64 acked = km_read(tcp, bytes_acked);
	__u64 written = message->state == TCP_SYN_SENT ? 0 : acked + on_the_way;
	__u64 received = km_read(tcp, bytes_received);
	bool done = km_sock_flag((struct sock *)tcp, SOCK_DONE);
	__u32 queue = km_read(tcp, rcv_nxt) - km_read(tcp, copied_seq);

	if (message->role == KM_TCP_CONNECT) {
		written -= written ? 1 : 0;
		acked -= acked ? 1 : 0;
	}
	if (fin) {
		written -= written ? 1 : 0;
		if (!on_the_way)
			acked -= acked ? 1 : 0;
	}
	message->bytes_sent = written;
	message->bytes_acked = acked;
	message->bytes_received = done && received ? received - 1 : received;
	if (done && queue)
		queue--;
	/* a signed difference, as it is taken without the socket's lock */
	message->receive_queue = (__s32)queue > 0 ? queue : 0;
}

/* message->role and state are filled in before */
static __always_inline void fill_counted(struct km_tcp_rtt_estimator *message, struct sock *sk)
{
	struct tcp_sock *tcp = (struct tcp_sock *)sk;

	if (message->role == KM_TCP_LISTEN) {
		message->accept_queue = km_read(sk, sk_ack_backlog);
		message->accept_queue_limit = km_read(sk, sk_max_ack_backlog);
		return;
	}
	fill_bytes(message, tcp);
	message->segments_sent = km_read(tcp, segs_out);
	message->segments_received = km_read(tcp, segs_in);
	message->retransmits = km_read(tcp, total_retrans);
	message->out_of_order = km_read(tcp, rcv_ooopack);
	message->srtt_us = km_read(tcp, srtt_us) >> 3;
	message->rttvar_us = km_read(tcp, mdev_us) >> 2;
	message->cwnd = km_read(tcp, snd_cwnd);
	message->unacked = km_read(tcp, packets_out);
	message->congestion_state = km_read_bits((struct inet_connection_sock *)sk, icsk_ca_state);
}

#endif
