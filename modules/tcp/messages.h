/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The messages of the tcp module: the only place where their layout is written.
 * Never renumber or reorder; append.
 *
 * Each says of which socket it is, in full, so that what is heard first of a socket
 * is enough to know it. What addresses look like is written in km/endpoints.h.
 */
#ifndef KM_TCP_MESSAGES_H
#define KM_TCP_MESSAGES_H

#include <km/endpoints.h>
#include <km/header.h>

enum km_tcp_message : __u16 {
	KM_TCP_NEW_SOCK_CREATED = 1,
	KM_TCP_CLOSE_SOCK_INFO,
	KM_TCP_SET_STATE_IPV4,
	KM_TCP_SET_STATE_IPV6,
	KM_TCP_RTT_ESTIMATOR,
	KM_TCP_RESET_TCP_COUNTERS,
	KM_TCP_TCP_SYN_TIMEOUT,
	KM_TCP_TCP_SYNACK_TIMEOUT,
	KM_TCP_TCP_RESET,
};

enum km_tcp_role : __u8 {
	KM_TCP_NO_ROLE,
	KM_TCP_CONNECT,
	KM_TCP_ACCEPT,
	KM_TCP_LISTEN
};

enum km_tcp_side : __u8 {
	KM_TCP_NO_SIDE,
	KM_TCP_LOCAL,
	KM_TCP_REMOTE
};

enum km_tcp_direction : __u8 {
	KM_TCP_SENT,
	KM_TCP_RECEIVED
};

/* include/net/rstreason.h, since 6.10; its numbers are the kernel's own business */
/* clang-format off */
#define KM_TCP_REASONS(each) \
	each(NOT_SPECIFIED) each(NO_SOCKET) each(TCP_INVALID_ACK_SEQUENCE) \
	each(TCP_RFC7323_PAWS) each(TCP_TOO_OLD_ACK) each(TCP_ACK_UNSENT_DATA) \
	each(TCP_FLAGS) each(TCP_OLD_ACK) each(TCP_ABORT_ON_DATA) \
	each(TCP_TIMEWAIT_SOCKET) each(INVALID_SYN) each(TCP_ABORT_ON_CLOSE) \
	each(TCP_ABORT_ON_LINGER) each(TCP_ABORT_ON_MEMORY) each(TCP_STATE) \
	each(TCP_KEEPALIVE_TIMEOUT) each(TCP_DISCONNECT_WITH_DATA) each(MPTCP_RST_EUNSPEC) \
	each(MPTCP_RST_EMPTCP) each(MPTCP_RST_ERESOURCE) each(MPTCP_RST_EPROHIBIT) \
	each(MPTCP_RST_EWQ2BIG) each(MPTCP_RST_EBADPERF) each(MPTCP_RST_EMIDDLEBOX) \
	each(ERROR)
/* clang-format on */

#define KM_TCP_REASON(name) KM_TCP_REASON_##name,
enum km_tcp_reason : __u8 {
	KM_TCP_NO_REASON, /* the kernel gives none, or one that is not in the list */
	KM_TCP_REASONS(KM_TCP_REASON)
};
#undef KM_TCP_REASON

/* who owns a socket, all zero if nobody does; and what names it */
#define KM_TCP_IDENTITY          \
	struct km_header header; \
	__u64 socket_id;         \
	km_time start_time;      \
	km_cgroup_id cgroup_id;  \
	km_pid pid;              \
	__u32 netns; /* inode number of the network namespace */

#define KM_TCP_SUBJECT         \
	KM_TCP_IDENTITY        \
	KM_ENDPOINTS           \
	enum km_tcp_role role; \
	__u8 state; /* TCP_… of include/net/tcp_states.h */

/* what was counted from the beginning on; neither SYN nor FIN is a byte here */
#define KM_TCP_COUNTED                                         \
	km_bytes bytes_sent;                                   \
	km_bytes bytes_acked;                                  \
	km_bytes bytes_received;                               \
	__u32 segments_sent;                                   \
	__u32 segments_received;                               \
	__u32 retransmits;                                     \
	__u32 out_of_order;                                    \
	__u32 srtt_us;                                         \
	__u32 rttvar_us;                                       \
	__u32 cwnd;                                            \
	__u32 unacked;	     /* segments */                    \
	__u32 receive_queue; /* bytes */                       \
	__u32 accept_queue;  /* connections; listeners only */ \
	__u32 accept_queue_limit;                              \
	__u8 congestion_state; /* enum tcp_ca_state */         \
	__u8 _pad_counted[3];

/* a socket connects, listens, was accepted, or is there */
struct km_tcp_new_sock_created {
	KM_TCP_SUBJECT
	km_bool existing;
	__u64 listener_id;  /* 0: not known */
	__u32 handshake_us; /* of an accepted one; 0: not known */
	__u32 _pad;
};

/* it has come to its end; state is the one before */
struct km_tcp_close_sock_info {
	KM_TCP_SUBJECT
	km_bool existing; /* it was found, so duration means nothing */
	KM_TCP_COUNTED
	km_ns duration;
	__s32 error; /* sk_err, an errno */
	enum km_tcp_side closed_first;
	km_bool missed; /* nobody saw it: there are no addresses and counters here */
	__u8 _pad[2];
};

/* its state changes; of those to CLOSE close_sock_info tells */
struct km_tcp_set_state_ipv4 {
	KM_TCP_IDENTITY
	km_be32 local_address;
	km_be32 remote_address;
	__u16 local_port;
	__u16 remote_port;
	enum km_tcp_role role;
	__u8 state; /* the new one */
	__u8 old_state;
	__u8 _pad;
	km_ns handshake; /* of one that connects, when it becomes ESTABLISHED */
};

struct km_tcp_set_state_ipv6 {
	KM_TCP_IDENTITY
	km_ipv6 local_address;
	km_ipv6 remote_address;
	__u16 local_port;
	__u16 remote_port;
	enum km_tcp_role role;
	__u8 state;
	__u8 old_state;
	__u8 _pad;
	km_ns handshake;
};

/* it was active */
struct km_tcp_rtt_estimator {
	KM_TCP_SUBJECT
	__u8 _pad;
	KM_TCP_COUNTED
};

/* the same of one that was found */
struct km_tcp_reset_tcp_counters {
	KM_TCP_SUBJECT
	__u8 _pad;
	KM_TCP_COUNTED
};

/* a SYN was not answered in time */
struct km_tcp_tcp_syn_timeout {
	KM_TCP_SUBJECT
	__u8 _pad;
	__u32 retransmits;
	__u32 _pad_end;
};

/* a SYN-ACK was not; the identity is the listener's, the addresses are not */
struct km_tcp_tcp_synack_timeout {
	KM_TCP_SUBJECT
	__u8 _pad;
	__u32 retransmits;
	__u32 _pad_end;
};

/* a reset came or went; socket_id is 0 if it belongs to no socket that is known */
struct km_tcp_tcp_reset {
	KM_TCP_SUBJECT
	enum km_tcp_direction direction;
	enum km_tcp_reason reason;
	__u8 _pad[7];
};

/* what most of them begin with */
struct km_tcp_subject {
	KM_TCP_SUBJECT
};

union km_tcp_messages {
	enum km_tcp_message id;
	struct km_tcp_new_sock_created new_sock_created;
	struct km_tcp_close_sock_info close_sock_info;
	struct km_tcp_set_state_ipv4 set_state_ipv4;
	struct km_tcp_set_state_ipv6 set_state_ipv6;
	struct km_tcp_rtt_estimator rtt_estimator;
	struct km_tcp_reset_tcp_counters reset_tcp_counters;
	struct km_tcp_tcp_syn_timeout tcp_syn_timeout;
	struct km_tcp_tcp_synack_timeout tcp_synack_timeout;
	struct km_tcp_tcp_reset tcp_reset;
};

_Static_assert(sizeof(struct km_tcp_new_sock_created) == 104, "new_sock_created");
_Static_assert(sizeof(struct km_tcp_close_sock_info) == 176, "close_sock_info");
_Static_assert(sizeof(struct km_tcp_set_state_ipv4) == 72, "set_state_ipv4");
_Static_assert(sizeof(struct km_tcp_set_state_ipv6) == 96, "set_state_ipv6");
_Static_assert(sizeof(struct km_tcp_rtt_estimator) == 160, "rtt_estimator");
_Static_assert(sizeof(struct km_tcp_reset_tcp_counters) == 160, "reset_tcp_counters");
_Static_assert(sizeof(struct km_tcp_tcp_syn_timeout) == 96, "tcp_syn_timeout");
_Static_assert(sizeof(struct km_tcp_tcp_synack_timeout) == 96, "tcp_synack_timeout");
_Static_assert(sizeof(struct km_tcp_tcp_reset) == 96, "tcp_reset");

#endif
