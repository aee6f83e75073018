/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * All kernel types that the framework keeps. Kept by hand: libbpf checks each
 * name and shape at load, so a wrong line here fails loudly. Types that only one
 * entity needs live beside that entity.
 */
#ifndef KM_KERNEL_H
#define KM_KERNEL_H

#include <km/cgroup.h>
#include <km/flavors.h>
#include <km/iter.h>
#include <km/mm.h>
#include <km/task.h>

#endif
