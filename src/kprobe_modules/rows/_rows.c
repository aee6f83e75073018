/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kprobe_modules.rows._rows: rows of bytes to objects with slots.
 *
 * What an interpreter does in some thirty bytecodes per row, unpacking a tuple
 * and running a constructor that copies its arguments into slots, is one loop
 * here. Nothing is known of messages or records: class, slots, formats and
 * offsets are arguments. What each name promises is written in _rows.pyi.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <endian.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct state {
	PyTypeObject *maker;
	PyTypeObject *made;
};

/* ---- one field: bytes of a row to a value in a slot ---- */

struct field {
	Py_ssize_t slot;    /* where an instance keeps the value */
	PyObject *argument; /* a constant, or what converts the value; may be NULL */
	char letter;	    /* as the struct module's; 0: a constant */
	bool big_endian;
	Py_ssize_t offset, width;
};

static Py_ssize_t width_of(char letter)
{
	switch (letter) {
	case 'b':
	case 'B':
	case '?':
		return 1;
	case 'h':
	case 'H':
		return 2;
	case 'i':
	case 'I':
		return 4;
	case 'q':
	case 'Q':
		return 8;
	default:
		return 0;
	}
}

static uint16_t read16(const uint8_t *at, bool big_endian)
{
	uint16_t value;

	memcpy(&value, at, sizeof value);
	return big_endian ? be16toh(value) : le16toh(value);
}

static uint32_t read32(const uint8_t *at, bool big_endian)
{
	uint32_t value;

	memcpy(&value, at, sizeof value);
	return big_endian ? be32toh(value) : le32toh(value);
}

static uint64_t read64(const uint8_t *at, bool big_endian)
{
	uint64_t value;

	memcpy(&value, at, sizeof value);
	return big_endian ? be64toh(value) : le64toh(value);
}

/* PyLong_FromLong has a short way for what most numbers are; the unsigned ones have none. */
static PyObject *number(uint64_t value)
{
	return value <= LONG_MAX ? PyLong_FromLong((long)value)
				 : PyLong_FromUnsignedLongLong(value);
}

static PyObject *field_read(const struct field *field, const uint8_t *row)
{
	const uint8_t *at = row + field->offset;
	bool big = field->big_endian;

	switch (field->letter) {
	case 'Q':
		return number(read64(at, big));
	case 'I':
		return number(read32(at, big));
	case 'H':
		return PyLong_FromLong(read16(at, big));
	case 'B':
		return PyLong_FromLong(*at);
	case 'q':
		return PyLong_FromLongLong((int64_t)read64(at, big));
	case 'i':
		return PyLong_FromLong((int32_t)read32(at, big));
	case 'h':
		return PyLong_FromLong((int16_t)read16(at, big));
	case 'b':
		return PyLong_FromLong((int8_t)*at);
	case '?':
		return PyBool_FromLong(*at);
	default:
		return PyBytes_FromStringAndSize((const char *)at, field->width);
	}
}

static PyObject *field_value(const struct field *field, const uint8_t *row)
{
	PyObject *value, *converted;

	if (!field->letter) {
		Py_INCREF(field->argument);
		return field->argument;
	}
	value = field_read(field, row);
	if (!value || !field->argument)
		return value;
	converted = PyObject_CallFunctionObjArgs(field->argument, value, NULL);
	Py_DECREF(value);
	return converted;
}

static bool field_fill(const struct field *field, PyObject *object, const uint8_t *row)
{
	PyObject **slot = (PyObject **)((char *)object + field->slot);
	PyObject *value = field_value(field, row), *before = *slot;

	if (!value)
		return false;
	*slot = value;
	Py_XDECREF(before); /* somebody named a slot twice */
	return true;
}

/* ---- Maker ---- */

typedef struct {
	PyObject_HEAD PyTypeObject *type;
	allocfunc allocate;
	Py_ssize_t stride;
	struct field *fields;
	Py_ssize_t count;
} Maker;

/* Parses "<16s", ">H" and the like; false, with an exception, if it is something else. */
static bool field_format(struct field *field, const char *format, Py_ssize_t stride)
{
	char *end = NULL;
	Py_ssize_t length;

	if (*format == '<' || *format == '>') {
		field->big_endian = *format == '>';
		length = strtol(format + 1, &end, 10);
		field->letter = *end;
		field->width = *end == 's' ? (end == format + 1 ? 1 : length) : width_of(*end);
		if (*end && !end[1] &&
		    (*end == 's' ? length >= 0 : field->width && end == format + 1))
			goto found;
	}
	PyErr_Format(PyExc_ValueError,
		     "format %s: expected one of bBhHiIqQ? or a length and s, "
		     "after < or >",
		     format);
	return false;
found:
	if (field->offset >= 0 && field->width <= stride && field->offset <= stride - field->width)
		return true;
	PyErr_Format(PyExc_ValueError, "field at %zd of %zd bytes: outside a row of %zd",
		     field->offset, field->width, stride);
	return false;
}

/* Finds a slot of a class written in Python; slots of its bases are elsewhere. */
static bool field_slot(struct field *field, PyTypeObject *type, const char *name)
{
	PyTypeObject *base = type;
	const PyMemberDef *member;

	for (; base; base = (PyTypeObject *)PyType_GetSlot(base, Py_tp_base)) {
		member = PyType_GetSlot(base, Py_tp_members);
		for (; member && member->name; member++) {
			if (strcmp(member->name, name) || member->type != T_OBJECT_EX)
				continue;
			field->slot = member->offset;
			return true;
		}
	}
	PyErr_Format(PyExc_TypeError, "%R has no slot %s", type, name);
	return false;
}

/* Takes (name, None, 0, constant) or (name, format, offset, converter or None). */
static bool field_parse(struct field *field, PyObject *item, const Maker *maker)
{
	const char *name, *format;
	PyObject *argument;

	if (!PyTuple_Check(item)) {
		PyErr_SetString(PyExc_TypeError, "a field is a tuple");
		return false;
	}
	if (!PyArg_ParseTuple(item, "sznO:field", &name, &format, &field->offset, &argument) ||
	    !field_slot(field, maker->type, name))
		return false;
	if (!format || argument != Py_None) {
		Py_INCREF(argument);
		field->argument = argument;
	}
	return !format || field_format(field, format, maker->stride);
}

static int Maker_clear(PyObject *object)
{
	Maker *self = (Maker *)object;
	Py_ssize_t count = self->count;

	self->count = 0;
	for (Py_ssize_t i = 0; i < count; i++)
		Py_CLEAR(self->fields[i].argument);
	Py_CLEAR(self->type);
	return 0;
}

static int Maker_traverse(PyObject *object, visitproc visit, void *arg)
{
	Maker *self = (Maker *)object;

	Py_VISIT(Py_TYPE(object));
	Py_VISIT(self->type);
	for (Py_ssize_t i = 0; i < self->count; i++)
		Py_VISIT(self->fields[i].argument);
	return 0;
}

static void Maker_dealloc(PyObject *object)
{
	PyTypeObject *type = Py_TYPE(object);

	PyObject_GC_UnTrack(object);
	Maker_clear(object);
	PyMem_Free(((Maker *)object)->fields);
	((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
	Py_DECREF(type);
}

static PyObject *Maker_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "type", "stride", "fields", NULL };
	PyObject *made, *fields;
	Py_ssize_t stride, count;
	Maker *self;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!nO!:Maker", names, &PyType_Type, &made,
					 &stride, &PyTuple_Type, &fields))
		return NULL;
	if (stride < 1)
		return PyErr_Format(PyExc_ValueError, "stride is %zd, expected at least 1", stride);
	self = (Maker *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
	if (!self)
		return NULL;
	Py_INCREF(made);
	self->type = (PyTypeObject *)made;
	self->allocate = (allocfunc)PyType_GetSlot(self->type, Py_tp_alloc);
	self->stride = stride;
	count = PyTuple_Size(fields);
	self->fields = PyMem_Calloc(count ? (size_t)count : 1, sizeof *self->fields);
	if (!self->fields) {
		Py_DECREF(self);
		return PyErr_NoMemory();
	}
	while (self->count < count) {
		struct field *field = &self->fields[self->count];

		if (!field_parse(field, PyTuple_GetItem(fields, self->count++), self)) {
			Py_DECREF(self);
			return NULL;
		}
	}
	return (PyObject *)self;
}

static PyObject *make_one(const Maker *self, const uint8_t *row)
{
	PyObject *object;

	/* Somebody's finaliser may call what the garbage collector has emptied. */
	if (!self->type) {
		PyErr_SetString(PyExc_RuntimeError, "this maker is gone");
		return NULL;
	}
	object = self->allocate(self->type, 0);

	for (Py_ssize_t i = 0; object && i < self->count; i++)
		if (!field_fill(&self->fields[i], object, row))
			Py_CLEAR(object);
	return object;
}

/* ---- the instances of one buffer, each made when it is asked for ---- */

/*
 * So those of several buffers that are interleaved are made in the order in which
 * they are used and given up, which the allocator and the caches reward.
 */
typedef struct {
	PyObject_HEAD Maker *maker;
	Py_buffer rows;
	Py_ssize_t position;
} Made;

static PyObject *Made_next(PyObject *object)
{
	Made *self = (Made *)object;
	const uint8_t *row = (const uint8_t *)self->rows.buf + self->position;

	if (self->position >= self->rows.len)
		return NULL;
	self->position += self->maker->stride;
	return make_one(self->maker, row);
}

static void Made_dealloc(PyObject *object)
{
	PyTypeObject *type = Py_TYPE(object);

	PyBuffer_Release(&((Made *)object)->rows);
	Py_XDECREF((PyObject *)((Made *)object)->maker);
	((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
	Py_DECREF(type);
}

static PyType_Slot Made_slots[] = {
	{ Py_tp_dealloc, Made_dealloc },
	{ Py_tp_iter, PyObject_SelfIter },
	{ Py_tp_iternext, Made_next },
	{ 0, NULL },
};

static PyType_Spec Made_spec = {
	.name = "kprobe_modules.rows._rows._Made",
	.basicsize = sizeof(Made),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.slots = Made_slots,
};

static PyObject *Maker_call(PyObject *object, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "rows", NULL };
	Maker *self = (Maker *)object;
	struct state *state = PyType_GetModuleState(Py_TYPE(object));
	PyObject *rows;
	Made *made;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:Maker", names, &rows))
		return NULL;
	made = (Made *)((allocfunc)PyType_GetSlot(state->made, Py_tp_alloc))(state->made, 0);
	if (!made)
		return NULL;
	Py_INCREF(object);
	made->maker = self;
	if (PyObject_GetBuffer(rows, &made->rows, PyBUF_SIMPLE)) {
		Py_DECREF(made);
		return NULL;
	}
	if (made->rows.len % self->stride) {
		PyErr_Format(PyExc_ValueError,
			     "rows: %zd bytes are not a multiple of %zd, the size of a row",
			     made->rows.len, self->stride);
		Py_CLEAR(made);
	}
	return (PyObject *)made;
}

static PyType_Slot Maker_slots[] = {
	{ Py_tp_doc,
	  "Maker(type, stride, fields): rows to instances. See _rows.pyi for the documentation." },
	{ Py_tp_new, Maker_new },
	{ Py_tp_call, Maker_call },
	{ Py_tp_dealloc, Maker_dealloc },
	{ Py_tp_traverse, Maker_traverse },
	{ Py_tp_clear, Maker_clear },
	{ 0, NULL },
};

static PyType_Spec Maker_spec = {
	.name = "kprobe_modules.rows._rows.Maker",
	.basicsize = sizeof(Maker),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
	.slots = Maker_slots,
};

/* ---- interleave ---- */

static PyObject *next_of(PyObject *iterators, uint16_t index)
{
	PyObject *iterator, *item;

	if (index >= PyTuple_Size(iterators))
		return PyErr_Format(PyExc_IndexError, "iterator %u: there are %zd",
				    (unsigned int)index, PyTuple_Size(iterators));
	iterator = PyTuple_GetItem(iterators, index);
	item = PyIter_Next(iterator);
	if (!item && !PyErr_Occurred())
		PyErr_SetNone(PyExc_StopIteration);
	return item;
}

static PyObject *interleave_all(PyObject *iterators, const Py_buffer *view)
{
	Py_ssize_t count = view->len / (Py_ssize_t)sizeof(uint16_t);
	const uint16_t *sequence = view->buf;
	PyObject *items, *item;

	for (Py_ssize_t i = 0; i < PyTuple_Size(iterators); i++)
		if (!PyIter_Check(PyTuple_GetItem(iterators, i)))
			return PyErr_Format(PyExc_TypeError, "%R is not an iterator",
					    PyTuple_GetItem(iterators, i));
	items = PyList_New(count);
	for (Py_ssize_t i = 0; items && i < count; i++) {
		item = next_of(iterators, sequence[i]);
		if (!item || PyList_SetItem(items, i, item))
			Py_CLEAR(items);
	}
	return items;
}

static PyObject *interleave(PyObject *module, PyObject *args)
{
	PyObject *given, *iterators, *sequence, *result = NULL;
	Py_buffer view;

	(void)module;
	if (!PyArg_ParseTuple(args, "OO:interleave", &given, &sequence) ||
	    PyObject_GetBuffer(sequence, &view, PyBUF_SIMPLE))
		return NULL;
	iterators = PySequence_Tuple(given);
	if (iterators)
		result = interleave_all(iterators, &view);
	Py_XDECREF(iterators);
	PyBuffer_Release(&view);
	return result;
}

/* ---- module ---- */

static int module_exec(PyObject *module)
{
	struct state *state = PyModule_GetState(module);

	state->made = (PyTypeObject *)PyType_FromModuleAndSpec(module, &Made_spec, NULL);
	state->maker = (PyTypeObject *)PyType_FromModuleAndSpec(module, &Maker_spec, NULL);
	return state->made && state->maker ? PyModule_AddType(module, state->maker) : -1;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
	struct state *state = PyModule_GetState(module);

	Py_VISIT(state->made);
	Py_VISIT(state->maker);
	return 0;
}

static int module_clear(PyObject *module)
{
	struct state *state = PyModule_GetState(module);

	Py_CLEAR(state->made);
	Py_CLEAR(state->maker);
	return 0;
}

static PyMethodDef module_methods[] = {
	{ "interleave", interleave, METH_VARARGS,
	  "interleave(iterators, sequence): the next of each iterator that the sequence names." },
	{ NULL },
};

static PyModuleDef_Slot module_slots[] = {
	{ Py_mod_exec, module_exec },
	{ 0, NULL },
};

static struct PyModuleDef module_definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "kprobe_modules.rows._rows",
	.m_doc = "Rows of bytes to objects with slots, natively.",
	.m_size = sizeof(struct state),
	.m_methods = module_methods,
	.m_slots = module_slots,
	.m_traverse = module_traverse,
	.m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__rows(void)
{
	return PyModuleDef_Init(&module_definition);
}
