/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* The one way out: fill the header, count, write to whichever transport is on. */
#ifndef KM_EMIT_H
#define KM_EMIT_H

#include <km/consts.h>
#include <km/counters.h>
#include <km/header.h>
#include <km/helpers.h>
#include <km/maps.h>

#define KM_TRANSPORT_PERF 0
#define KM_TRANSPORT_RINGBUF 1

/* set by the collector before load, constants to the verifier afterwards */
const volatile __u16 km_module_id = 0;
const volatile __u8 km_transport = KM_TRANSPORT_PERF;
const volatile __u32 km_ring_wakeup = 65536;

/* what a message takes in a BPF ring buffer: a header of 8 bytes, and all of it aligned */
#define KM_RINGBUF_ROOM(size) (((size) + 8 + 7) & ~7ULL)

/*
 * The verifier knows km_transport when it gets here and never visits the other
 * branch, which would fail: each helper accepts one type of map only.
 */
static __always_inline long km_output(void *ctx, void *message, __u64 size)
{
	__u64 flags = BPF_RB_NO_WAKEUP, waiting;

	if (km_transport == KM_TRANSPORT_PERF)
		return bpf_perf_event_output(ctx, &events, BPF_F_CURRENT_CPU, message, size);

	/*
	 * Waking the reader costs far more than the write, so only the message that
	 * crosses the mark does. Two CPUs may both miss the crossing; the reader
	 * looks after its interval anyway.
	 */
	waiting = bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA);
	if (waiting < km_ring_wakeup && waiting + KM_RINGBUF_ROOM(size) >= km_ring_wakeup)
		flags = BPF_RB_FORCE_WAKEUP;
	return bpf_ringbuf_output(&events, message, size, flags);
}

static __always_inline void km_fill_header(struct km_header *header, __u16 message, __u16 size)
{
	header->module = km_module_id;
	header->message = message;
	header->length = size;
	header->cpu = bpf_get_smp_processor_id();
}

/*
 * Write one message of `size` bytes, which starts with `header`, to `events`.
 * Returns 0, or a negative errno after counting the loss.
 */
static __always_inline long km_emit(void *ctx, struct km_header *header, __u16 message, __u64 size)
{
	struct km_counter *counter = km_counter(message);
	long error;

	km_fill_header(header, message, size);
	if (counter)
		km_add(&counter->emitted, 1);
	/* the time goes last: what is written later on this CPU is not older */
	header->time = bpf_ktime_get_ns();
	error = km_output(ctx, header, size);
	if (error && counter)
		km_add(&counter->lost, 1);
	return error;
}

/*
 * The same with a given time, for what is known to have happened earlier. Such a
 * message may come out later than newer ones; use it only where that is right.
 */
static __always_inline long km_emit_at(void *ctx, struct km_header *header, __u16 message,
				       __u64 size, __u64 time)
{
	struct km_counter *counter = km_counter(message);
	long error;

	km_fill_header(header, message, size);
	if (counter)
		km_add(&counter->emitted, 1);
	header->time = time;
	error = km_output(ctx, header, size);
	if (error && counter)
		km_add(&counter->lost, 1);
	return error;
}

#ifdef KM_USE_DATA_CHANNEL
/* The same to `data_channel`. Emit the control message that announces it next. */
static __always_inline long km_emit_data(void *ctx, struct km_header *header, __u16 message,
					 __u64 size)
{
	struct km_counter *counter = km_counter(message);
	long error;

	km_fill_header(header, message, size);
	if (counter)
		km_add(&counter->emitted, 1);
	header->time = bpf_ktime_get_ns();
	error = bpf_perf_event_output(ctx, &data_channel, BPF_F_CURRENT_CPU, header, size);
	if (error && counter)
		km_add(&counter->lost, 1);
	return error;
}
#endif

#endif
