/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The six messages of the benchmark: 24 to 96 bytes of payload after the
 * 16-byte header.
 *
 * Compiled into the generator (clang, with the project's headers) and into the
 * C consumer (gcc); whoever includes this file defines struct km_header first.
 * Every value follows from the sequence number, so two consumers that saw the
 * same ring compute the same checksum.
 */
#ifndef KM_BENCH_MESSAGES_H
#define KM_BENCH_MESSAGES_H

#ifdef __bpf__
enum km_bench_message : __u16 {
#else
enum km_bench_message {
#endif
	KM_BENCH_BEAT = 1,
	KM_BENCH_RENAMED = 2,
	KM_BENCH_MOVED = 3,
	KM_BENCH_OPENED = 4,
	KM_BENCH_CONNECTED = 5,
	KM_BENCH_EXITED = 6,
};

#define KM_BENCH_KINDS 6

struct km_bench_beat {
	struct km_header header;
	__u64 sequence;
	__u64 value;
	__u32 pid;
	__u32 uid;
};

struct km_bench_renamed {
	struct km_header header;
	__u64 sequence;
	__u32 pid;
	__u32 parent_pid;
	char comm[16];
};

struct km_bench_moved {
	struct km_header header;
	__u64 sequence;
	__u64 from_cgroup;
	__u64 to_cgroup;
	__u32 pid;
	__u32 uid;
	__u32 flags;
	__u32 depth;
};

struct km_bench_opened {
	struct km_header header;
	__u64 sequence;
	__u64 cookie;
	__u32 pid;
	__u32 uid;
	__u16 family;
	__u16 kind;
	__u16 port;
	__u16 backlog;
	char comm[16];
};

struct km_bench_connected {
	struct km_header header;
	__u64 sequence;
	__u64 cookie;
	__u32 pid;
	__u32 uid;
	__u16 family;
	__u16 state;
	__u16 source_port;
	__u16 destination_port;
	__u8 source[16];
	__u8 destination[16];
};

struct km_bench_exited {
	struct km_header header;
	__u64 sequence;
	__u64 start;
	__u64 duration;
	__u64 cgroup_id;
	__u32 pid;
	__u32 parent_pid;
	__u32 uid;
	__u32 exit_code;
	char comm[16];
	char executable[32];
};

/*
 * Which message a sequence number is: mixed, not in turn, because a branch
 * predictor learns a cycle of six and flatters every consumer.
 */
static inline enum km_bench_message km_bench_kind(__u64 sequence)
{
	__u64 mixed = sequence * 0x9e3779b97f4a7c15ULL;

	return (enum km_bench_message)(1 + (mixed >> 40) % KM_BENCH_KINDS);
}

#endif
