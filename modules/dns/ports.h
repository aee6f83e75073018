/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Which packets are DNS: those that have one of these ports, at either end. */
#ifndef KM_DNS_PORTS_H
#define KM_DNS_PORTS_H

#include <km/hook.h>
#include <km/types.h>

const volatile __u16 port_1 KM_DOC("a port of DNS servers; 0: none") = 53;
const volatile __u16 port_2 KM_DOC("another one; 0: none") = 0;
const volatile __u16 port_3 KM_DOC("another one; 0: none") = 0;
const volatile __u16 port_4 KM_DOC("another one; 0: none") = 0;
const volatile __u16 port_5 KM_DOC("another one; 0: none") = 0;
const volatile __u16 port_6 KM_DOC("another one; 0: none") = 0;
const volatile __u16 port_7 KM_DOC("another one; 0: none") = 0;
const volatile __u16 port_8 KM_DOC("another one; 0: none") = 0;

static __always_inline bool is_dns_port(__u16 port)
{
	return port && (port == port_1 || port == port_2 || port == port_3 || port == port_4 ||
			port == port_5 || port == port_6 || port == port_7 || port == port_8);
}

static __noinline bool is_dns(__u16 local, __u16 remote)
{
	return is_dns_port(local) || is_dns_port(remote);
}

#endif
