/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kprobe_modules.kernelbtf._walk: find a type in the bytes of BTF.
 *
 * Type ids are counted, not written, and types have many lengths: to know an id,
 * all types before it must be passed. A kernel has some 100,000 of them, which is
 * half a millisecond here. What find() promises is written in _walk.pyi.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

/* struct btf_type of <linux/btf.h>: name_off, info, and size or type. */
#define HEAD 12
#define MAX_NAMES 16

enum {
	NOT_FOUND = -1,
	NOT_KNOWN = -2,
};

/* Bytes that follow a type's head, by kind: once, and for each of its vlen. */
static const struct {
	uint8_t once, each;
} lengths[] = {
	[1] = { 4, 0 },	  /* INT */
	[2] = { 0, 0 },	  /* PTR */
	[3] = { 12, 0 },  /* ARRAY */
	[4] = { 0, 12 },  /* STRUCT */
	[5] = { 0, 12 },  /* UNION */
	[6] = { 0, 8 },	  /* ENUM */
	[7] = { 0, 0 },	  /* FWD */
	[8] = { 0, 0 },	  /* TYPEDEF */
	[9] = { 0, 0 },	  /* VOLATILE */
	[10] = { 0, 0 },  /* CONST */
	[11] = { 0, 0 },  /* RESTRICT */
	[12] = { 0, 0 },  /* FUNC: its vlen is its linkage */
	[13] = { 0, 8 },  /* FUNC_PROTO */
	[14] = { 4, 0 },  /* VAR */
	[15] = { 0, 12 }, /* DATASEC */
	[16] = { 0, 0 },  /* FLOAT */
	[17] = { 4, 0 },  /* DECL_TAG */
	[18] = { 0, 0 },  /* TYPE_TAG */
	[19] = { 0, 12 }, /* ENUM64 */
};

struct wanted {
	uint32_t names[MAX_NAMES];
	Py_ssize_t count;
	uint32_t kind;
};

static int is_wanted(const struct wanted *wanted, uint32_t name, uint32_t kind)
{
	if (kind != wanted->kind)
		return 0;
	for (Py_ssize_t i = 0; i < wanted->count; i++)
		if (wanted->names[i] == name)
			return 1;
	return 0;
}

static long walk(const uint8_t *at, const uint8_t *end, const struct wanted *wanted)
{
	for (long index = 0; end - at >= HEAD; index++) {
		uint32_t name, info;

		memcpy(&name, at, sizeof name);
		memcpy(&info, at + 4, sizeof info);
		uint32_t kind = info >> 24 & 0x1f;

		if (kind == 0 || kind >= sizeof lengths / sizeof *lengths)
			return NOT_KNOWN;
		if (is_wanted(wanted, name, kind))
			return index;
		/* At most 65535 times 12. */
		Py_ssize_t rest = lengths[kind].once + (info & 0xffff) * lengths[kind].each;

		if (end - at - HEAD < rest)
			return NOT_KNOWN;
		at += HEAD + rest;
	}
	return at == end ? NOT_FOUND : NOT_KNOWN;
}

static int read_names(PyObject *names, struct wanted *wanted)
{
	wanted->count = PyTuple_Size(names);
	if (wanted->count < 0)
		return -1;
	if (wanted->count > MAX_NAMES) {
		PyErr_Format(PyExc_ValueError, "expected at most %d names, found %zd", MAX_NAMES,
			     wanted->count);
		return -1;
	}
	for (Py_ssize_t i = 0; i < wanted->count; i++) {
		unsigned long name = PyLong_AsUnsignedLong(PyTuple_GetItem(names, i));

		if (PyErr_Occurred())
			return -1;
		wanted->names[i] = name;
	}
	return 0;
}

static PyObject *find(PyObject *Py_UNUSED(module), PyObject *arguments)
{
	struct wanted wanted = { .count = 0 };
	Py_ssize_t start, stop;
	PyObject *names;
	Py_buffer data;

	if (!PyArg_ParseTuple(arguments, "y*nnO!I:find", &data, &start, &stop, &PyTuple_Type,
			      &names, &wanted.kind))
		return NULL;
	PyObject *found = NULL;

	if (start < 0 || start > stop || stop > data.len)
		PyErr_Format(PyExc_ValueError, "expected a part of %zd bytes, found %zd to %zd",
			     data.len, start, stop);
	else if (!read_names(names, &wanted))
		found = PyLong_FromLong(walk((const uint8_t *)data.buf + start,
					     (const uint8_t *)data.buf + stop, &wanted));
	PyBuffer_Release(&data);
	return found;
}

static PyMethodDef methods[] = {
	{ "find", find, METH_VARARGS,
	  "find(data, start, stop, names, kind): which of the types it is." },
	{ NULL },
};

static PyModuleDef_Slot slots[] = {
	{ 0, NULL },
};

static struct PyModuleDef definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "kprobe_modules.kernelbtf._walk",
	.m_doc = "Find a type in the bytes of BTF.",
	.m_methods = methods,
	.m_slots = slots,
};

PyMODINIT_FUNC PyInit__walk(void)
{
	return PyModuleDef_Init(&definition);
}
