/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Connections: what processes write and read, in pieces. What was told once is not told
 * again, as when a process looks (MSG_PEEK) before it reads.
 */
#ifndef KM_DNS_STREAM_H
#define KM_DNS_STREAM_H

#include "datagram.h"

static __always_inline bool is_dns_connection(struct sock *sk)
{
	return is_dns(km_read(sk, __sk_common.skc_num),
		      host_order(km_read(sk, __sk_common.skc_dport)));
}

/*
 * Place bytes in their stream: their position is returned, and how many of them were told
 * before, as when a process looks (MSG_PEEK) before it reads, is left in `told`.
 */
static __always_inline __u64 place(struct km_dns_stream *stream, __u32 sequence, __u32 length,
				   __u64 *told)
{
	__u64 position = stream->position;
	__s32 ahead;

	if (!stream->known)
		stream->sequence = sequence;
	stream->known = true;
	ahead = sequence - stream->sequence;
	*told = 0;
	if (ahead >= 0)
		position += ahead;
	else if (-(__s64)ahead < length)
		*told = -(__s64)ahead;
	else
		*told = length;
	if (*told < length) {
		stream->position = position + length - *told;
		stream->sequence = sequence + length;
	}
	return position;
}

/* all but the piece itself; returns whether anything is to be told */
static __noinline bool begin_transfer(void *ctx, struct sock *sk, struct km_dns_work *work,
				      __u32 sequence, enum km_dns_direction direction)
{
	struct km_dns_dns_packet *message = message_of(work);
	struct km_dns_socket *socket = socket_of(ctx, sk);
	__u64 told;

	if (!socket)
		return false;
	message->offset = place(direction == KM_DNS_SENT ? &socket->sent : &socket->received,
				sequence, work->transfer.left, &told);
	work->transfer.told = told;
	work->transfer.left -= told;
	fill_socket(message, sk, socket, false);
	clear_ends(message);
	fill_endpoints(km_endpoints_of(message), km_address(sk, __sk_common));
	message->packet = 0;
	message->direction = direction;
	message->transport = KM_DNS_TCP;
	message->route = KM_DNS_OWN;
	message->_pad = 0;
	return work->transfer.left != 0;
}

/* returns whether something is left */
static __always_inline bool write_piece(void *ctx, struct km_dns_work *work, __u32 length,
					__u32 filled)
{
	message_of(work)->total_length = length;
	write_packet(ctx, work, filled);
	message_of(work)->offset += length;
	work->transfer.left -= length;
	return work->transfer.left != 0;
}

/* ---- written ---- */

/* a message has 64 KiB and two bytes, and a process may write it with several buffers */
#define KM_DNS_PIECES 24

/* the shape of iov_iter differs by version; false if the data is not a process's */
static __always_inline bool find_buffers(struct km_dns_transfer *transfer, struct iov_iter *iter)
{
	__u64 type;

	transfer->vector = transfer->single = 0;
	transfer->offset = km_read(iter, iov_offset);
	transfer->left = km_read(iter, count);
	if (km_field_exists(struct iov_iter, iter_type))
		type = km_read(iter, iter_type);
	else
		type = km_read(iter, type) & ~1U;
	if (type == km_enum_value(enum iter_type, ITER_IOVEC)) {
		if (km_field_exists(struct iov_iter, __iov))
			transfer->vector = (__u64)km_read(iter, __iov);
		else
			transfer->vector = (__u64)km_read(iter, iov);
		return true;
	}
	if (!km_enum_exists(enum iter_type, ITER_UBUF) ||
	    type != km_enum_value(enum iter_type, ITER_UBUF))
		return false;
	transfer->single = (__u64)km_read(iter, ubuf);
	return true;
}

/* where the next buffer is, and how much of it there is; 0: another one follows */
static __always_inline __u64 next_buffer(struct km_dns_transfer *transfer, const void **buffer)
{
	struct iovec *vector = (struct iovec *)transfer->vector;
	__u64 length = transfer->told + transfer->left;

	*buffer = (const void *)transfer->single + transfer->offset;
	if (!vector)
		return length;
	*buffer = km_read(vector, iov_base) + transfer->offset;
	length = km_read(vector, iov_len) - transfer->offset;
	if (!length) {
		transfer->vector += km_type_size(struct iovec);
		transfer->offset = 0;
	}
	return length;
}

static __always_inline __u32 read_buffer(struct km_dns_work *work, const void *buffer, __u64 size)
{
	km_opaque(size);
	if (size > KM_DNS_PAYLOAD || bpf_probe_read_user(work->payload, size, buffer))
		return 0;
	return size;
}

/* returns whether something is left */
static __noinline bool write_buffer(void *ctx, struct km_dns_work *work)
{
	struct km_dns_transfer *transfer = &work->transfer;
	const void *buffer;
	__u64 length;

	length = next_buffer(transfer, &buffer);
	if (transfer->told) {
		if (length > transfer->told)
			length = transfer->told;
		transfer->told -= length;
		transfer->offset += length;
		return true;
	}
	if (length > transfer->left)
		length = transfer->left;
	if (length > KM_DNS_PAYLOAD)
		length = KM_DNS_PAYLOAD;
	if (!length)
		return true;
	transfer->offset += length;
	return write_piece(ctx, work, length, read_buffer(work, buffer, length));
}

static __noinline int write_written(void *ctx, struct sock *sk, struct msghdr *message)
{
	__u32 sequence = km_read((struct tcp_sock *)sk, write_seq), slot;
	struct km_dns_work *work;

	work = take_work(&slot, sk);
	if (!work)
		return 0;
	if (find_buffers(&work->transfer, km_address(message, msg_iter)) &&
	    begin_transfer(ctx, sk, work, sequence, KM_DNS_SENT)) {
		for (int i = 0; i < KM_DNS_PIECES; i++) {
			if (!write_buffer(ctx, work))
				break;
		}
	}
	km_scratch_give(slot);
	return 0;
}

static __always_inline int on_tcp_write(void *ctx, struct sock *sk, struct msghdr *message)
{
	return is_dns_connection(sk) ? write_written(ctx, sk, message) : 0;
}

/* ---- read ---- */

/* as many parts and pieces are looked at */
#define KM_DNS_STEPS 48

/* returns whether something is left */
static __noinline bool read_step(void *ctx, struct km_dns_work *work)
{
	bool more = append_part(work);

	if (more && !is_filled(work))
		return true;
	if (!write_piece(ctx, work, work->copy.wanted, work->copy.filled))
		return false;
	work->copy.filled = 0;
	work->copy.wanted =
		work->transfer.left < KM_DNS_PAYLOAD ? work->transfer.left : KM_DNS_PAYLOAD;
	return more;
}

/* where in the packet the process goes on; a look at packets behind is not followed */
static __noinline int write_read(void *ctx, struct sock *sk, struct sk_buff *skb, __u32 length)
{
	__u32 sequence = km_read((struct tcp_sock *)sk, copied_seq), slot, skip;
	struct tcp_skb_cb *control = (struct tcp_skb_cb *)km_address(skb, cb);
	struct km_dns_work *work;

	skip = sequence - km_read(control, seq);
	if (skip >= km_read(skb, len))
		return 0;
	work = take_work(&slot, sk);
	if (!work)
		return 0;
	work->transfer.left = length;
	if (begin_transfer(ctx, sk, work, sequence, KM_DNS_RECEIVED)) {
		begin_copy(work, skb, skip + work->transfer.told, work->transfer.left);
		for (int i = 0; i < KM_DNS_STEPS; i++) {
			if (!read_step(ctx, work))
				break;
		}
	}
	km_scratch_give(slot);
	return 0;
}

static __always_inline int on_tcp_read(void *ctx, struct sk_buff *skb, __u32 length)
{
	struct sock *sk = km_read(skb, sk);

	if (!speaks(sk, IPPROTO_TCP) || !is_dns_connection(sk))
		return 0;
	return write_read(ctx, sk, skb, length);
}

#endif
