// SPDX-License-Identifier: Apache-2.0
/*
 * Loads the generator a number of times, hands the descriptors of the events
 * maps to whoever started it, and fills rings on command.
 *
 *	generate OBJECT INSTANCES perf|ringbuf SOCKET
 *
 * Each instance is the same program over an events map of its own, so that
 * each consumer reads rings that nobody else touches.  Commands, one per line
 * on stdin, each answered by one line on stdout:
 *
 *	capacity BYTES			how many messages from sequence 0 fit a perf ring
 *	reset INSTANCE			zero the sequences and the counters
 *	fill INSTANCE COUNT		COUNT messages on every CPU at once
 *	run INSTANCE CPU COUNT		COUNT messages on one CPU; answers ns per run
 *	rate INSTANCE CPU MS PER_MS	paced (PER_MS > 0) or flat out (0)
 *	counts INSTANCE			emitted and lost, summed over CPUs and messages
 *
 * In C and not through the project's own loader: what fills the rings must not
 * depend on what is being measured.
 */
#define _GNU_SOURCE
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "../wire.h"
#include "messages.h"

#define MAX_INSTANCES 16
#define MAX_CPUS 512
#define FLAT_OUT_RUNS 20000
#define RING_BUFFER_BYTES (4 << 20)

struct instance {
	struct bpf_object *object;
	int program, events, sequence, counters;
};

struct filling {
	pthread_t thread;
	pthread_barrier_t *barrier;
	int program, cpu;
	__u32 count;
	__u32 duration;
	int error;
};

struct counter {
	__u64 emitted, lost;
};

static struct instance instances[MAX_INSTANCES];
static int instance_count;

static void die(const char *what)
{
	fprintf(stderr, "generate: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int print_warnings(enum libbpf_print_level level, const char *format, va_list arguments)
{
	return level == LIBBPF_WARN ? vfprintf(stderr, format, arguments) : 0;
}

static __u64 now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000ULL + at.tv_nsec;
}

/* Sets a one-byte constant in .rodata before load, found by name in the BTF. */
static void set_constant(struct bpf_object *object, const char *name, __u8 value)
{
	struct btf *btf = bpf_object__btf(object);
	int section = btf__find_by_name_kind(btf, ".rodata", BTF_KIND_DATASEC);
	const struct btf_type *type = btf__type_by_id(btf, section);
	const struct btf_var_secinfo *entry;
	struct bpf_map *map;
	size_t size;
	__u8 *bytes;
	int i;

	bpf_object__for_each_map(map, object) if (strstr(bpf_map__name(map), ".rodata")) break;
	if (section < 0 || !map)
		die("no .rodata");
	bytes = (__u8 *)bpf_map__initial_value(map, &size);
	entry = btf_var_secinfos(type);
	for (i = 0; i < btf_vlen(type); i++, entry++) {
		const struct btf_type *variable = btf__type_by_id(btf, entry->type);

		if (!strcmp(btf__name_by_offset(btf, variable->name_off), name)) {
			bytes[entry->offset] = value;
			return;
		}
	}
	fprintf(stderr, "generate: no constant %s in the object\n", name);
	exit(1);
}

static void use_ring_buffer(struct bpf_object *object)
{
	struct bpf_map *events = bpf_object__find_map_by_name(object, "events");

	if (bpf_map__set_type(events, BPF_MAP_TYPE_RINGBUF) || bpf_map__set_key_size(events, 0) ||
	    bpf_map__set_value_size(events, 0) ||
	    bpf_map__set_max_entries(events, RING_BUFFER_BYTES))
		die("events as a ring buffer");
	set_constant(object, "km_transport", 1);
}

static void load(struct instance *instance, const char *path, const char *transport)
{
	struct bpf_object *object = bpf_object__open_file(path, NULL);

	if (!object)
		die(path);
	if (!strcmp(transport, "ringbuf"))
		use_ring_buffer(object);
	else if (!strcmp(transport, "none"))
		set_constant(object, "bench_emit", 0);
	if (bpf_object__load(object))
		die("load");
	instance->object = object;
	instance->program =
		bpf_program__fd(bpf_object__find_program_by_name(object, "bench_generate"));
	instance->events = bpf_object__find_map_fd_by_name(object, "events");
	instance->sequence = bpf_object__find_map_fd_by_name(object, "bench_sequence");
	instance->counters = bpf_object__find_map_fd_by_name(object, "km_counters");
}

static void send_descriptors(int socket)
{
	int descriptors[MAX_INSTANCES];
	char control[CMSG_SPACE(sizeof(descriptors))] = {};
	size_t size = instance_count * sizeof(int);
	struct iovec payload = { .iov_base = "d", .iov_len = 1 };
	struct msghdr message = {
		.msg_iov = &payload,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = CMSG_SPACE(size),
	};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	int i;

	for (i = 0; i < instance_count; i++)
		descriptors[i] = instances[i].events;
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(size);
	memcpy(CMSG_DATA(header), descriptors, size);
	if (sendmsg(socket, &message, 0) < 0)
		die("sending descriptors");
}

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity");
}

static __u32 run(int program, __u32 count)
{
	char packet[64] = {};
	LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = packet, .data_size_in = sizeof(packet),
		    .repeat = count);

	if (bpf_prog_test_run_opts(program, &options))
		die("BPF_PROG_TEST_RUN");
	return options.duration;
}

static void *fill_one(void *argument)
{
	struct filling *filling = argument;

	pin(filling->cpu);
	pthread_barrier_wait(filling->barrier);
	if (filling->count)
		filling->duration = run(filling->program, filling->count);
	return NULL;
}

/* All CPUs at once, so that their timestamps interleave as on a busy host. */
static void fill(int index, __u32 count)
{
	int cpus = sysconf(_SC_NPROCESSORS_ONLN), i;
	struct filling fillings[MAX_CPUS];
	pthread_barrier_t barrier;
	__u64 total = 0;

	pthread_barrier_init(&barrier, NULL, cpus);
	for (i = 0; i < cpus; i++) {
		fillings[i] = (struct filling){
			.barrier = &barrier,
			.program = instances[index].program,
			.cpu = i,
			.count = count,
		};
		if (pthread_create(&fillings[i].thread, NULL, fill_one, &fillings[i]))
			die("pthread_create");
	}
	for (i = 0; i < cpus; i++) {
		pthread_join(fillings[i].thread, NULL);
		total += fillings[i].duration;
	}
	pthread_barrier_destroy(&barrier);
	printf("%d %llu\n", cpus, (unsigned long long)(total / cpus));
}

static void reset(int index)
{
	int cpus = libbpf_num_possible_cpus();
	struct counter counters[MAX_CPUS] = {};
	__u64 sequences[MAX_CPUS] = {};
	__u32 key = 0;

	if (cpus > MAX_CPUS || bpf_map_update_elem(instances[index].sequence, &key, sequences, 0))
		die("resetting the sequence");
	for (key = 0; key <= KM_BENCH_KINDS; key++)
		if (bpf_map_update_elem(instances[index].counters, &key, counters, 0))
			die("resetting the counters");
	printf("0\n");
}

static void counts(int index)
{
	int cpus = libbpf_num_possible_cpus(), cpu;
	struct counter counters[MAX_CPUS], sum = {};
	__u32 key;

	for (key = 1; key <= KM_BENCH_KINDS; key++) {
		if (bpf_map_lookup_elem(instances[index].counters, &key, counters))
			die("reading the counters");
		for (cpu = 0; cpu < cpus; cpu++) {
			sum.emitted += counters[cpu].emitted;
			sum.lost += counters[cpu].lost;
		}
	}
	printf("%llu %llu\n", (unsigned long long)sum.emitted, (unsigned long long)sum.lost);
}

static size_t message_size(enum km_bench_message kind)
{
	switch (kind) {
	case KM_BENCH_BEAT:
		return sizeof(struct km_bench_beat);
	case KM_BENCH_RENAMED:
		return sizeof(struct km_bench_renamed);
	case KM_BENCH_MOVED:
		return sizeof(struct km_bench_moved);
	case KM_BENCH_OPENED:
		return sizeof(struct km_bench_opened);
	case KM_BENCH_CONNECTED:
		return sizeof(struct km_bench_connected);
	default:
		return sizeof(struct km_bench_exited);
	}
}

/* A perf record: 8 bytes of header, 4 of size, the sample, padded to 8. */
static void capacity(__u64 bytes)
{
	__u64 used = 0, count = 0;

	for (;; count++) {
		used += 8 + (4 + message_size(km_bench_kind(count)) + 7) / 8 * 8;
		if (used >= bytes)
			break;
	}
	printf("%llu %.1f\n", (unsigned long long)count, (double)bytes / count);
}

/* Flat out, or a burst each millisecond that catches up if it was late. */
static void rate(int index, int cpu, __u64 milliseconds, __u32 per_ms)
{
	__u64 start, end, done = 0;

	pin(cpu);
	start = now();
	end = start + milliseconds * 1000000;
	while (now() < end) {
		if (!per_ms) {
			run(instances[index].program, FLAT_OUT_RUNS);
			done += FLAT_OUT_RUNS;
			continue;
		}
		__u64 due = (now() - start) * per_ms / 1000000;

		if (due > done) {
			run(instances[index].program, due - done);
			done = due;
		}
		usleep(1000);
	}
	printf("%llu %llu\n", (unsigned long long)done, (unsigned long long)(now() - start));
}

static void obey(const char *line)
{
	unsigned long long a, b, c, d;

	if (sscanf(line, "capacity %llu", &a) == 1) {
		capacity(a);
		return;
	}
	if (sscanf(line, "%*s %llu", &a) != 1 || a >= (unsigned long long)instance_count) {
		fprintf(stderr, "generate: not a command: %s", line);
		exit(1);
	}
	if (sscanf(line, "reset %llu", &a) == 1) {
		reset(a);
	} else if (sscanf(line, "counts %llu", &a) == 1) {
		counts(a);
	} else if (sscanf(line, "fill %llu %llu", &a, &b) == 2) {
		fill(a, b);
	} else if (sscanf(line, "run %llu %llu %llu", &a, &b, &c) == 3) {
		pin(b);
		printf("%u\n", run(instances[a].program, c));
	} else if (sscanf(line, "rate %llu %llu %llu %llu", &a, &b, &c, &d) == 4) {
		rate(a, b, c, d);
	} else {
		fprintf(stderr, "generate: not a command: %s", line);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	char line[256];
	int i;

	if (argc != 5 || atoi(argv[2]) < 1 || atoi(argv[2]) > MAX_INSTANCES) {
		fprintf(stderr, "usage: generate OBJECT INSTANCES perf|ringbuf|none SOCKET\n");
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	/* with a ring buffer libbpf warns that the map's BTF no longer fits, and retries */
	libbpf_set_print(strcmp(argv[3], "ringbuf") ? print_warnings : NULL);
	instance_count = atoi(argv[2]);
	for (i = 0; i < instance_count; i++)
		load(&instances[i], argv[1], argv[3]);
	send_descriptors(atoi(argv[4]));
	while (fgets(line, sizeof(line), stdin))
		obey(line);
	return 0;
}
