// SPDX-License-Identifier: Apache-2.0
/*
 * The peer the targets are stated against: libbpf's perf_buffer__consume() with
 * a callback that decodes every field of six messages, or one that only counts.
 *
 *	consume MAP_FD PAGES
 *
 * Commands on stdin: "drain decode|count EXPECTED checked|unchecked" (decoding
 * always sums); each is answered by one JSON object.  The clock runs around perf_buffer__consume() and nothing else.
 */
#include <bpf/libbpf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../../wire.h"
#include "../../generator/messages.h"

struct tally {
	int decoding;
	__u64 events, lost, malformed, sequence, checksum;
	char comm[16], executable[32];
	__u8 source[16], destination[16];
};

static void decode(struct tally *tally, const struct km_header *header)
{
	const void *data = header;

	switch (header->message) {
	case KM_BENCH_BEAT: {
		const struct km_bench_beat *m = data;

		tally->sequence += m->sequence;
		tally->checksum += m->value + m->pid + m->uid;
		break;
	}
	case KM_BENCH_RENAMED: {
		const struct km_bench_renamed *m = data;

		tally->sequence += m->sequence;
		tally->checksum += m->pid + m->parent_pid + m->comm[0];
		memcpy(tally->comm, m->comm, sizeof(m->comm));
		break;
	}
	case KM_BENCH_MOVED: {
		const struct km_bench_moved *m = data;

		tally->sequence += m->sequence;
		tally->checksum += m->from_cgroup + m->to_cgroup;
		tally->checksum += (__u64)m->pid + m->uid + m->flags + m->depth;
		break;
	}
	case KM_BENCH_OPENED: {
		const struct km_bench_opened *m = data;

		tally->sequence += m->sequence;
		tally->checksum += m->cookie + m->pid + m->uid + m->family;
		tally->checksum += m->kind + m->port + m->backlog + m->comm[0];
		memcpy(tally->comm, m->comm, sizeof(m->comm));
		break;
	}
	case KM_BENCH_CONNECTED: {
		const struct km_bench_connected *m = data;

		tally->sequence += m->sequence;
		tally->checksum += m->cookie + m->pid + m->uid + m->family + m->state;
		tally->checksum += m->source_port + m->destination_port;
		tally->checksum += m->source[0] + m->destination[0];
		memcpy(tally->source, m->source, sizeof(m->source));
		memcpy(tally->destination, m->destination, sizeof(m->destination));
		break;
	}
	case KM_BENCH_EXITED: {
		const struct km_bench_exited *m = data;

		tally->sequence += m->sequence;
		tally->checksum += m->start + m->duration + m->cgroup_id;
		tally->checksum += (__u64)m->pid + m->parent_pid + m->uid + m->exit_code;
		tally->checksum += m->comm[0] + m->executable[0];
		memcpy(tally->comm, m->comm, sizeof(m->comm));
		memcpy(tally->executable, m->executable, sizeof(m->executable));
		break;
	}
	default:
		tally->malformed++;
	}
}

static void on_sample(void *context, int cpu, void *data, __u32 size)
{
	const struct km_header *header = data;
	struct tally *tally = context;

	tally->events++;
	if (!tally->decoding)
		return;
	if (size < sizeof(*header) || size < header->length)
		tally->malformed++;
	else
		decode(tally, header);
}

static void on_lost(void *context, int cpu, __u64 count)
{
	((struct tally *)context)->lost += count;
}

static __u64 now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000ULL + at.tv_nsec;
}

int main(int argc, char **argv)
{
	struct perf_buffer *buffer;
	struct tally tally = {};
	char line[128], mode[16];
	__u64 started, took;

	if (argc != 3) {
		fprintf(stderr, "usage: consume MAP_FD PAGES\n");
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	buffer = perf_buffer__new(atoi(argv[1]), atoi(argv[2]), on_sample, on_lost, &tally, NULL);
	if (!buffer) {
		perror("consume: perf_buffer__new");
		return 1;
	}
	puts("ready");
	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "drain %15s", mode) != 1)
			return 2;
		memset(&tally, 0, sizeof(tally));
		tally.decoding = !strcmp(mode, "decode");
		started = now();
		perf_buffer__consume(buffer);
		took = now() - started;
		printf("{\"ns\": %llu, \"events\": %llu, \"lost\": %llu, \"malformed\": %llu, "
		       "\"sequence\": %llu, \"checksum\": %llu}\n",
		       took, tally.events, tally.lost, tally.malformed, tally.sequence,
		       tally.checksum);
	}
	perf_buffer__free(buffer);
	return 0;
}
