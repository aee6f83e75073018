/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kprobe_modules.kernelbtf._index: types in the bytes of BTF, by name.
 *
 * Type ids are counted, not written, and types have many lengths: to know one id,
 * all types before it must be passed. A kernel has some 100,000 of them, so they
 * are passed once. What Index promises is written in _index.pyi.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* struct btf_type of <linux/btf.h>: name_off, info, and size or type. */
#define HEAD 12

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

/* Open addressing: where the name is, and what has it. */
struct entry {
	uint32_t name;
	uint32_t kind_and_number; /* 5 and 27 bits, the first type being 1; 0: nothing */
};

#define NUMBER_BITS 27
#define NUMBER_MASK ((1u << NUMBER_BITS) - 1)

typedef struct Index {
	PyObject_HEAD Py_buffer data;
	struct Index *base; /* whose strings come before ours, or NULL */
	uint32_t first;	    /* the offset of the first of ours */
	const uint8_t *strings;
	uint32_t strings_size;
	const uint8_t *types, *end;
	uint32_t kinds; /* a bit for each that is in the table */
	struct entry *table;
	uint32_t mask;
	bool whole; /* whether all types could be passed */
} Index;

struct name {
	const uint8_t *at;
	size_t length;
};

/* The name at an offset; nothing (at is NULL) if it is outside. */
static struct name name_at(const Index *self, uint32_t offset)
{
	while (self->base && offset < self->first)
		self = self->base;
	offset -= self->first;
	if (offset >= self->strings_size)
		return (struct name){ NULL, 0 };
	const uint8_t *at = self->strings + offset;

	return (struct name){ at, strnlen((const char *)at, self->strings_size - offset) };
}

static uint32_t hash(struct name name, uint32_t kind)
{
	uint64_t sum = kind + 1, word;
	size_t left = name.length;

	for (; left >= sizeof word; left -= sizeof word, name.at += sizeof word) {
		memcpy(&word, name.at, sizeof word);
		sum = (sum ^ word) * 0x9E3779B97F4A7C15ull;
		sum ^= sum >> 32;
	}
	word = left;
	memcpy(&word, name.at, left);
	sum = (sum ^ word ^ (uint64_t)left << 60) * 0x9E3779B97F4A7C15ull;
	return (uint32_t)(sum >> 32);
}

struct type {
	uint32_t name, kind;
	const uint8_t *next;
};

/* Reads the type at a place; false if it is cut, or of a kind that is not known. */
static bool read_type(const uint8_t *at, const uint8_t *end, struct type *type)
{
	uint32_t info;

	if (end - at < HEAD)
		return false;
	memcpy(&type->name, at, sizeof type->name);
	memcpy(&info, at + 4, sizeof info);
	type->kind = info >> 24 & 0x1f;
	if (type->kind == 0 || type->kind >= sizeof lengths / sizeof *lengths)
		return false;
	/* At most 65535 times 12. */
	ptrdiff_t length = HEAD + lengths[type->kind].once +
			   (ptrdiff_t)(info & 0xffff) * lengths[type->kind].each;

	if (end - at < length)
		return false;
	type->next = at + length;
	return true;
}

static bool is_indexed(const Index *self, const struct type *type)
{
	return type->name && self->kinds >> type->kind & 1;
}

static void enter(Index *self, const struct type *type, uint32_t number)
{
	struct name name = name_at(self, type->name);

	if (!name.at)
		return;
	uint32_t at = hash(name, type->kind) & self->mask;

	while (self->table[at].kind_and_number)
		at = (at + 1) & self->mask;
	self->table[at] = (struct entry){ type->name, type->kind << NUMBER_BITS | number };
}

/* Passes all types twice: to count, and to enter; false if there is no memory. */
static bool fill(Index *self)
{
	const uint8_t *at = self->types;
	uint32_t wanted = 0, room = 16, number = 0;
	struct type type;

	for (; read_type(at, self->end, &type) && number < NUMBER_MASK; at = type.next, number++)
		wanted += is_indexed(self, &type);
	self->whole = at == self->end;
	while (room / 2 < wanted)
		room *= 2;
	self->table = calloc(room, sizeof *self->table);
	if (!self->table)
		return false;
	self->mask = room - 1;
	at = self->types;
	for (uint32_t i = 1; i <= number && read_type(at, self->end, &type); i++, at = type.next)
		if (is_indexed(self, &type))
			enter(self, &type, i);
	return true;
}

static uint32_t look_up(const Index *self, struct name name, uint32_t kind)
{
	uint32_t at = hash(name, kind) & self->mask, found = 0;

	for (; self->table[at].kind_and_number; at = (at + 1) & self->mask) {
		const struct entry *entry = &self->table[at];
		uint32_t number = entry->kind_and_number & NUMBER_MASK;
		struct name its = name_at(self, entry->name);

		if (entry->kind_and_number >> NUMBER_BITS == kind && its.length == name.length &&
		    !memcmp(its.at, name.at, name.length) && (!found || number < found))
			found = number;
	}
	return found;
}

/* ---- for Python ---- */

struct part {
	Py_ssize_t start, stop;
};

static bool is_inside(struct part part, Py_ssize_t size)
{
	return part.start >= 0 && part.start <= part.stop && part.stop <= size &&
	       part.stop - part.start <= INT32_MAX;
}

static bool set_parts(Index *self, struct part types, struct part strings)
{
	const uint8_t *data = self->data.buf;

	if (!is_inside(types, self->data.len) || !is_inside(strings, self->data.len)) {
		PyErr_Format(PyExc_ValueError,
			     "expected parts of %zd bytes, found %zd to %zd and %zd to %zd",
			     self->data.len, types.start, types.stop, strings.start, strings.stop);
		return false;
	}
	self->types = data + types.start;
	self->end = data + types.stop;
	self->strings = data + strings.start;
	self->strings_size = (uint32_t)(strings.stop - strings.start);
	self->first = self->base ? self->base->first + self->base->strings_size : 0;
	return true;
}

static PyObject *Index_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "data", "types", "strings", "kinds", "base", NULL };
	struct part types, strings;
	PyObject *base = Py_None;
	unsigned int kinds;
	bool filled;
	allocfunc allocate = PyType_GetSlot(type, Py_tp_alloc);
	Index *self = (Index *)allocate(type, 0);

	if (!self)
		return NULL;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*(nn)(nn)I|O:Index", names, &self->data,
					 &types.start, &types.stop, &strings.start, &strings.stop,
					 &kinds, &base))
		goto refused;
	if (base != Py_None && Py_TYPE(base) != type) {
		PyErr_SetString(PyExc_TypeError, "expected an Index, or None, as base");
		goto refused;
	}
	self->kinds = kinds;
	self->base = base == Py_None ? NULL : (Index *)Py_NewRef(base);
	if (!set_parts(self, types, strings))
		goto refused;
	/* Nobody else has this yet, and what it reads is held by its buffer. */
	Py_BEGIN_ALLOW_THREADS;
	filled = fill(self);
	Py_END_ALLOW_THREADS;
	if (!filled) {
		PyErr_NoMemory();
		goto refused;
	}
	return (PyObject *)self;
refused:
	Py_DECREF(self);
	return NULL;
}

static void Index_dealloc(PyObject *object)
{
	Index *self = (Index *)object;
	PyTypeObject *type = Py_TYPE(object);
	freefunc release = PyType_GetSlot(type, Py_tp_free);

	if (self->data.obj)
		PyBuffer_Release(&self->data);
	free(self->table);
	Py_XDECREF((PyObject *)self->base);
	release(object);
	Py_DECREF(type);
}

static PyObject *Index_find(PyObject *object, PyObject *args)
{
	const Index *self = (Index *)object;
	struct name name;
	Py_ssize_t length;
	unsigned int kind;

	if (!PyArg_ParseTuple(args, "y#I:find", &name.at, &length, &kind))
		return NULL;
	name.length = (size_t)length;
	if (kind > 0x1f || !(self->kinds >> kind & 1))
		return PyErr_Format(PyExc_ValueError, "types of kind %u are not in this index",
				    kind);
	return PyLong_FromLong((long)look_up(self, name, kind) - 1);
}

static PyObject *Index_get_whole(PyObject *object, void *Py_UNUSED(closure))
{
	return PyBool_FromLong(((Index *)object)->whole);
}

static PyMethodDef Index_methods[] = {
	{ "find", Index_find, METH_VARARGS, "find(name, kind): number of the first such type." },
	{ NULL },
};

static PyGetSetDef Index_properties[] = {
	{ "whole", Index_get_whole, NULL, "whether all types could be passed", NULL },
	{ NULL },
};

static PyType_Slot Index_slots[] = {
	{ Py_tp_doc, "Types in the bytes of BTF, by name." },
	{ Py_tp_new, Index_new },
	{ Py_tp_dealloc, Index_dealloc },
	{ Py_tp_methods, Index_methods },
	{ Py_tp_getset, Index_properties },
	{ 0, NULL },
};

static PyType_Spec Index_spec = {
	.name = "kprobe_modules.kernelbtf._index.Index",
	.basicsize = sizeof(Index),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
	.slots = Index_slots,
};

/* ---- the bytes of a file ---- */

typedef struct Contents {
	PyObject_HEAD void *at;
	size_t length;
	bool mapped;
} Contents;

/*
 * Where the kernel lets us map its BTF (6.16) there is nothing to read. Elsewhere sysfs gives
 * out a page at a time, and in Python each of a thousand reads would take the interpreter's
 * lock anew, from threads that have better use for it.
 */
static bool obtain(Contents *self, int fd)
{
	struct stat status;
	size_t size;
	ssize_t got;

	if (fstat(fd, &status) < 0)
		return false;
	size = (size_t)status.st_size;
	self->at = size ? mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0) : MAP_FAILED;
	self->mapped = self->at != MAP_FAILED;
	if (self->mapped) {
		self->length = size;
		return true;
	}
	self->at = malloc(size + 1);
	if (!self->at)
		return false;
	do {
		got = read(fd, (char *)self->at + self->length, size - self->length);
		if (got > 0)
			self->length += (size_t)got;
	} while (got > 0 || (got < 0 && errno == EINTR));
	return got == 0;
}

static PyObject *Contents_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "", NULL };
	allocfunc allocate = PyType_GetSlot(type, Py_tp_alloc);
	bool obtained;
	int fd, error;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i:Contents", names, &fd))
		return NULL;
	Contents *self = (Contents *)allocate(type, 0);

	if (!self)
		return NULL;
	Py_BEGIN_ALLOW_THREADS;
	obtained = obtain(self, fd);
	error = errno;
	Py_END_ALLOW_THREADS;
	if (obtained)
		return (PyObject *)self;
	Py_DECREF(self);
	errno = error;
	return PyErr_SetFromErrno(PyExc_OSError);
}

static void Contents_dealloc(PyObject *object)
{
	Contents *self = (Contents *)object;
	PyTypeObject *type = Py_TYPE(object);
	freefunc release = PyType_GetSlot(type, Py_tp_free);

	if (self->mapped)
		munmap(self->at, self->length);
	else
		free(self->at);
	release(object);
	Py_DECREF(type);
}

static int Contents_getbuffer(PyObject *object, Py_buffer *view, int flags)
{
	Contents *self = (Contents *)object;

	return PyBuffer_FillInfo(view, object, self->at, (Py_ssize_t)self->length, 1, flags);
}

static PyType_Slot Contents_slots[] = {
	{ Py_tp_doc, "The bytes of a file." },
	{ Py_tp_new, Contents_new },
	{ Py_tp_dealloc, Contents_dealloc },
	{ Py_bf_getbuffer, Contents_getbuffer },
	{ 0, NULL },
};

static PyType_Spec Contents_spec = {
	.name = "kprobe_modules.kernelbtf._index.Contents",
	.basicsize = sizeof(Contents),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
	.slots = Contents_slots,
};

static int add_type(PyObject *module, PyType_Spec *spec, const char *name)
{
	PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
	int failed = !type || PyModule_AddObjectRef(module, name, type);

	Py_XDECREF(type);
	return failed ? -1 : 0;
}

static int module_exec(PyObject *module)
{
	if (add_type(module, &Index_spec, "Index"))
		return -1;
	return add_type(module, &Contents_spec, "Contents");
}

static PyModuleDef_Slot slots[] = {
	{ Py_mod_exec, module_exec },
	{ 0, NULL },
};

static struct PyModuleDef definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "kprobe_modules.kernelbtf._index",
	.m_doc = "Types in the bytes of BTF, by name.",
	.m_slots = slots,
};

PyMODINIT_FUNC PyInit__index(void)
{
	return PyModuleDef_Init(&definition);
}
