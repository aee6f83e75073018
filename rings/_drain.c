/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kprobe_modules.rings._drain: the native Drainer.
 *
 * This file is the Python side; what happens to bytes is in the headers beside
 * it. The pure twin, _drain_py.py, passes the same tests. Everything runs under
 * the GIL, which is what makes the pool's counts safe.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include "_walk.h"

struct state {
	PyObject *ring_error;
	PyObject *drained;
	PyObject *tails;
	PyObject *check_registration;
	PyTypeObject *block;
	PyTypeObject *batch;
	PyTypeObject *drainer;
};

/* ---- Block: a chunk that Python sees as a buffer ---- */

typedef struct {
	PyObject_HEAD struct chunk *chunk;
	Py_ssize_t items;
	Py_ssize_t itemsize;
	const char *format;
} Block;

static uint8_t nothing[8];

static int buffer_fill(PyObject *self, Py_buffer *view, int flags, uint8_t *data, Py_ssize_t *items,
		       Py_ssize_t *itemsize, const char *format)
{
	if (flags & PyBUF_WRITABLE) {
		PyErr_SetString(PyExc_BufferError, "rows are read-only");
		view->obj = NULL;
		return -1;
	}
	Py_INCREF(self);
	view->obj = self;
	view->buf = data;
	view->len = *items * *itemsize;
	view->readonly = 1;
	view->itemsize = *itemsize;
	view->format = flags & PyBUF_FORMAT ? (char *)format : NULL;
	view->ndim = 1;
	view->shape = flags & PyBUF_ND ? items : NULL;
	view->strides = (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? itemsize : NULL;
	view->suboffsets = NULL;
	view->internal = NULL;
	return 0;
}

static int Block_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
	Block *block = (Block *)self;

	return buffer_fill(self, view, flags, block->chunk ? chunk_data(block->chunk) : nothing,
			   &block->items, &block->itemsize, block->format);
}

static void Block_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);

	chunk_put(((Block *)self)->chunk);
	((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
	Py_DECREF(type);
}

static PyType_Slot Block_slots[] = {
	{ Py_tp_doc, "Drained memory, given back when nobody looks at it any more." },
	{ Py_tp_dealloc, Block_dealloc },
	{ Py_bf_getbuffer, Block_getbuffer },
	{ 0, NULL },
};

static PyType_Spec Block_spec = {
	.name = "kprobe_modules.rings._drain._Block",
	.basicsize = sizeof(Block),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.slots = Block_slots,
};

static PyObject *allocate(PyTypeObject *type)
{
	return ((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
}

/* A memoryview over a chunk; takes the chunk over, also when it fails. */
static PyObject *block_view(struct state *state, struct chunk *chunk, size_t items,
			    Py_ssize_t itemsize, const char *format)
{
	Block *block = (Block *)allocate(state->block);
	PyObject *view;

	if (!block) {
		chunk_put(chunk);
		return NULL;
	}
	block->chunk = chunk;
	block->items = (Py_ssize_t)items;
	block->itemsize = itemsize;
	block->format = format;
	view = PyMemoryView_FromObject((PyObject *)block);
	Py_DECREF(block);
	return view;
}

/* ---- Batch ---- */

typedef struct {
	PyObject_HEAD struct chunk *chunk;
	Py_ssize_t bytes;
	Py_ssize_t one;
	unsigned int key;
	Py_ssize_t count;
	Py_ssize_t stride;
	PyObject *tails;
} Batch;

static int Batch_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
	Batch *batch = (Batch *)self;

	return buffer_fill(self, view, flags, chunk_data(batch->chunk), &batch->bytes, &batch->one,
			   "B");
}

static void Batch_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);

	Py_XDECREF(((Batch *)self)->tails);
	chunk_put(((Batch *)self)->chunk);
	((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
	Py_DECREF(type);
}

static PyObject *Batch_repr(PyObject *self)
{
	Batch *batch = (Batch *)self;

	return PyUnicode_FromFormat("<Batch key=0x%x count=%zd stride=%zd>", batch->key,
				    batch->count, batch->stride);
}

static PyMemberDef Batch_members[] = {
	{ "key", T_UINT, offsetof(Batch, key), READONLY, "the messages' type" },
	{ "count", T_PYSSIZET, offsetof(Batch, count), READONLY, "rows" },
	{ "stride", T_PYSSIZET, offsetof(Batch, stride), READONLY, "bytes per row" },
	{ "tails", T_OBJECT, offsetof(Batch, tails), READONLY,
	  "Tails of ragged messages, else None" },
	{ NULL },
};

static PyType_Slot Batch_slots[] = {
	{ Py_tp_doc,
	  "Messages of one type as contiguous rows; a read-only buffer of count * stride bytes." },
	{ Py_tp_dealloc, Batch_dealloc },
	{ Py_tp_repr, Batch_repr },
	{ Py_tp_members, Batch_members },
	{ Py_bf_getbuffer, Batch_getbuffer },
	{ 0, NULL },
};

static PyType_Spec Batch_spec = {
	.name = "kprobe_modules.rings._drain.Batch",
	.basicsize = sizeof(Batch),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.slots = Batch_slots,
};

/* Turns what a slot collected into a Batch, and empties the slot either way. */
static PyObject *batch_from(struct state *state, struct slot *slot)
{
	size_t count = (size_t)slot->used / slot->fixed;
	Batch *batch = (Batch *)allocate(state->batch);
	PyObject *offsets, *blob;

	slot->habit = (size_t)slot->used;
	slot->tails_habit = slot->tails;
	if (!batch) {
		slot_discard(slot);
		return NULL;
	}
	batch->chunk = slot->rows;
	batch->bytes = slot->used;
	batch->one = 1;
	batch->key = slot->key;
	batch->count = (Py_ssize_t)count;
	batch->stride = (Py_ssize_t)slot->fixed;
	if (slot->ragged) {
		offsets = block_view(state, slot->offsets, count + 1, 4, "I");
		blob = block_view(state, slot->blob, slot->tails, 1, "B");
		if (offsets && blob)
			batch->tails =
				PyObject_CallFunctionObjArgs(state->tails, offsets, blob, NULL);
		Py_XDECREF(offsets);
		Py_XDECREF(blob);
	}
	slot_clear(slot);
	if (PyErr_Occurred())
		Py_CLEAR(batch);
	return (PyObject *)batch;
}

/* ---- Drainer ---- */

struct source {
	struct ring *ring;
	PyObject *owner;
	PyObject *memory;
	Py_buffer produced, consumed, data;
};

typedef struct {
	PyObject_HEAD PyObject *framing_object;
	struct framing framing;
	struct pool *pool;
	struct table table;
	struct source **sources;
	struct ring **rings; /* beside sources */
	struct player *tree;
	size_t count;
	struct slot **touched; /* room for every slot */
	uint64_t newest;
	uint64_t unknown; /* met by read(), told by the next drain() */
	uint64_t largest_budget, default_budget;
	bool busy; /* a finaliser or thread may call in while results are built */
} Drainer;

static struct state *state_of(Drainer *self)
{
	return PyType_GetModuleState(Py_TYPE((PyObject *)self));
}

static bool is_busy(Drainer *self)
{
	if (self->busy)
		PyErr_SetString(state_of(self)->ring_error, "drainer: another call is using it");
	return self->busy;
}

static void source_free(struct source *source)
{
	if (source->produced.obj)
		PyBuffer_Release(&source->produced);
	if (source->consumed.obj)
		PyBuffer_Release(&source->consumed);
	if (source->data.obj)
		PyBuffer_Release(&source->data);
	Py_CLEAR(source->memory);
	Py_CLEAR(source->owner);
	if (source->ring)
		ring_free(source->ring);
	PyMem_Free(source);
}

static int framing_field(PyObject *framing, const char *name, uint32_t *value)
{
	PyObject *object = PyObject_GetAttrString(framing, name);
	long number = object ? PyLong_AsLong(object) : -1;

	Py_XDECREF(object);
	if (number == -1 && PyErr_Occurred())
		return -1;
	*value = (uint32_t)number;
	return 0;
}

static int read_constant(PyObject *module, const char *name, uint64_t *value)
{
	PyObject *object = PyObject_GetAttrString(module, name);

	*value = object ? PyLong_AsUnsignedLongLong(object) : 0;
	Py_XDECREF(object);
	return PyErr_Occurred() ? -1 : 0;
}

static PyObject *Drainer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "framing", NULL };
	PyObject *framing, *module;
	Drainer *self;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:Drainer", names, &framing))
		return NULL;
	self = (Drainer *)allocate(type);
	if (!self)
		return NULL;
	Py_INCREF(framing);
	self->framing_object = framing;
	self->pool = calloc(1, sizeof *self->pool);
	if (!self->pool || !table_rebuild(&self->table, NULL, NULL)) {
		Py_DECREF(self);
		return PyErr_NoMemory();
	}
	self->pool->users = 1;
	module = PyImport_ImportModule("kprobe_modules.rings.framing");
	if (!module || framing_field(framing, "time_offset", &self->framing.time) ||
	    framing_field(framing, "key_offset", &self->framing.key) ||
	    framing_field(framing, "length_offset", &self->framing.length) ||
	    framing_field(framing, "cpu_offset", &self->framing.cpu) ||
	    framing_field(framing, "header_size", &self->framing.header) ||
	    read_constant(module, "DEFAULT_BUDGET", &self->default_budget) ||
	    read_constant(module, "LARGEST_BUDGET", &self->largest_budget))
		Py_CLEAR(self);
	Py_XDECREF(module);
	return (PyObject *)self;
}

static void sources_clear(Drainer *self)
{
	while (self->count)
		source_free(self->sources[--self->count]);
}

static int Drainer_traverse(PyObject *object, visitproc visit, void *arg)
{
	Drainer *self = (Drainer *)object;

	Py_VISIT(Py_TYPE(object));
	Py_VISIT(self->framing_object);
	for (size_t i = 0; i < self->count; i++) {
		Py_VISIT(self->sources[i]->owner);
		Py_VISIT(self->sources[i]->memory);
	}
	return 0;
}

static int Drainer_clear(PyObject *object)
{
	Drainer *self = (Drainer *)object;

	sources_clear(self);
	Py_CLEAR(self->framing_object);
	return 0;
}

static void Drainer_dealloc(PyObject *object)
{
	Drainer *self = (Drainer *)object;
	PyTypeObject *type = Py_TYPE(object);

	PyObject_GC_UnTrack(object);
	Drainer_clear(object);
	free(self->sources);
	free(self->rings);
	free(self->tree);
	free(self->touched);
	for (uint32_t i = 0; self->table.entries && i <= self->table.mask; i++)
		if (self->table.entries[i].slot)
			slot_free(self->table.entries[i].slot);
	free(self->table.entries);
	if (self->pool)
		pool_close(self->pool);
	((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
	Py_DECREF(type);
}

/* Gets one attribute of a RingMemory as a buffer. */
static int memory_buffer(PyObject *memory, const char *name, Py_buffer *view, int flags)
{
	PyObject *object = PyObject_GetAttrString(memory, name);
	int result = object ? PyObject_GetBuffer(object, view, flags) : -1;

	Py_XDECREF(object);
	return result;
}

static struct source *source_open(Drainer *self, int cpu, PyObject *owner)
{
	struct source *source = PyMem_Calloc(1, sizeof *source);
	struct ring *ring = calloc(1, sizeof *ring);
	PyObject *kind = NULL;

	if (!source || !ring) {
		PyMem_Free(source);
		free(ring);
		PyErr_NoMemory();
		return NULL;
	}
	source->ring = ring;
	Py_INCREF(owner);
	source->owner = owner;
	source->memory = PyObject_CallMethod(owner, "memory", NULL);
	if (!source->memory ||
	    memory_buffer(source->memory, "produced", &source->produced, PyBUF_SIMPLE) ||
	    memory_buffer(source->memory, "consumed", &source->consumed, PyBUF_WRITABLE) ||
	    memory_buffer(source->memory, "data", &source->data, PyBUF_SIMPLE))
		goto failed;
	kind = PyObject_GetAttrString(source->memory, "kind");
	if (!kind)
		goto failed;
	ring->indexed = PyUnicode_CompareWithASCIIString(kind, "bpf") == 0;
	Py_DECREF(kind);
	ring->data = source->data.buf;
	ring->size = (uint64_t)source->data.len >> ring->indexed;
	ring->produced = source->produced.buf;
	ring->consumed = source->consumed.buf;
	ring->cpu = cpu;
	if (source->produced.len != 8 || source->consumed.len != 8 || ring->size < 8 ||
	    ring->size & (ring->size - 1) ||
	    ((uintptr_t)ring->produced | (uintptr_t)ring->consumed | (uintptr_t)ring->data) & 7) {
		PyErr_Format(state_of(self)->ring_error,
			     "ring of cpu %d: its memory is not a ring, or not aligned to 8 bytes",
			     cpu);
		goto failed;
	}
	return source;
failed:
	source_free(source);
	return NULL;
}

static bool sources_room(Drainer *self)
{
	size_t room = (self->count + 1) * sizeof(void *);
	void *sources = realloc(self->sources, room), *rings, *tree;

	if (sources)
		self->sources = sources;
	rings = realloc(self->rings, room);
	if (rings)
		self->rings = rings;
	tree = realloc(self->tree, tournament_size(self->count + 1) * sizeof *self->tree);
	if (tree)
		self->tree = tree;
	return sources && rings && tree;
}

static PyObject *Drainer_add_ring(PyObject *object, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "cpu", "ring", NULL };
	Drainer *self = (Drainer *)object;
	struct source *source;
	PyObject *owner;
	int cpu;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iO:add_ring", names, &cpu, &owner))
		return NULL;
	if (is_busy(self))
		return NULL;
	if (cpu < SHARED_CPU || cpu > UINT16_MAX)
		return PyErr_Format(state_of(self)->ring_error,
				    "cpu %d: expected -1 (shared) to 65535", cpu);
	for (size_t i = 0; i < self->count; i++)
		if (self->sources[i]->owner == owner)
			return PyErr_Format(state_of(self)->ring_error,
					    "ring of cpu %d: was added already", cpu);
	source = source_open(self, cpu, owner);
	if (!source)
		return NULL;
	if (is_busy(self) || !sources_room(self)) {
		source_free(source);
		return PyErr_Occurred() ? NULL : PyErr_NoMemory();
	}
	source->ring->rank = (uint32_t)self->count;
	self->sources[self->count] = source;
	self->rings[self->count++] = source->ring;
	Py_RETURN_NONE;
}

static PyObject *Drainer_remove_ring(PyObject *object, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "cpu", "ring", NULL };
	Drainer *self = (Drainer *)object;
	PyObject *owner = Py_None;
	struct source *source;
	size_t at = 0;
	int cpu;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i|O:remove_ring", names, &cpu, &owner))
		return NULL;
	if (is_busy(self))
		return NULL;
	while (at < self->count && (self->rings[at]->cpu != cpu ||
				    (owner != Py_None && self->sources[at]->owner != owner)))
		at++;
	if (at == self->count)
		return PyErr_Format(state_of(self)->ring_error,
				    "ring of cpu %d: is not in this drainer", cpu);
	source = self->sources[at];
	self->count--;
	for (; at < self->count; at++) {
		self->sources[at] = self->sources[at + 1];
		self->rings[at] = self->rings[at + 1];
		self->rings[at]->rank = (uint32_t)at;
	}
	source_free(source);
	Py_RETURN_NONE;
}

static PyObject *Drainer_register(PyObject *object, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "key", "fixed_size", "ragged", NULL };
	Drainer *self = (Drainer *)object;
	PyObject *key_object, *checked;
	struct slot **touched, *slot;
	long long key, fixed;
	int ragged = 0;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OL|p:register", names, &key_object, &fixed,
					 &ragged))
		return NULL;
	checked =
		PyObject_CallFunction(state_of(self)->check_registration, "OLOk", key_object, fixed,
				      self->framing_object, (unsigned long)self->table.count);
	if (!checked)
		return NULL;
	Py_DECREF(checked);
	key = PyLong_AsLongLong(key_object);
	if (key == -1 && PyErr_Occurred())
		return NULL;
	if (is_busy(self))
		return NULL;
	if (table_find(&self->table, (uint32_t)key))
		return PyErr_Format(state_of(self)->ring_error, "key 0x%x: is registered already",
				    (unsigned int)key);
	touched = realloc(self->touched, (self->table.count + 1) * sizeof *touched);
	if (!touched)
		return PyErr_NoMemory();
	self->touched = touched;
	slot = slot_new();
	if (!slot)
		return PyErr_NoMemory();
	slot->key = (uint32_t)key;
	slot->fixed = (uint32_t)fixed;
	slot->ragged = ragged;
	slot->unusual = ragged || fixed > SLACK;
	slot_clear(slot);
	if (!table_rebuild(&self->table, slot, NULL)) {
		free(slot);
		return PyErr_NoMemory();
	}
	Py_RETURN_NONE;
}

static struct slot *slot_of(Drainer *self, PyObject *key_object)
{
	long long key = PyLong_AsLongLong(key_object);
	struct slot *slot = NULL;
	PyObject *hexadecimal;

	if (key == -1 && PyErr_Occurred())
		return NULL;
	if (key >= 0 && key <= UINT32_MAX)
		slot = table_find(&self->table, (uint32_t)key);
	if (slot)
		return slot;
	hexadecimal = PyNumber_ToBase(key_object, 16);
	if (hexadecimal)
		PyErr_Format(state_of(self)->ring_error, "key %U: is not registered", hexadecimal);
	Py_XDECREF(hexadecimal);
	return NULL;
}

static PyObject *Drainer_unregister(PyObject *object, PyObject *key)
{
	Drainer *self = (Drainer *)object;
	struct slot *slot = slot_of(self, key);

	if (!slot || is_busy(self))
		return NULL;
	if (!table_rebuild(&self->table, NULL, slot))
		return PyErr_NoMemory();
	slot_free(slot);
	Py_RETURN_NONE;
}

static PyObject *Drainer_received(PyObject *object, PyObject *key)
{
	Drainer *self = (Drainer *)object;
	struct slot *slot = slot_of(self, key);
	PyObject *result = slot ? PyDict_New() : NULL;

	for (uint32_t cpu = 0; result && cpu < slot->received.cpus; cpu++) {
		PyObject *number, *count;

		if (!slot->received.counts[cpu])
			continue;
		number = PyLong_FromUnsignedLong(cpu);
		count = PyLong_FromUnsignedLongLong(slot->received.counts[cpu]);
		if (!number || !count || PyDict_SetItem(result, number, count))
			Py_CLEAR(result);
		Py_XDECREF(number);
		Py_XDECREF(count);
	}
	return result;
}

static PyObject *Drainer_pending(PyObject *object, PyObject *unused)
{
	Drainer *self = (Drainer *)object;
	uint64_t pending = 0;

	(void)unused;
	for (size_t i = 0; i < self->count; i++)
		pending += ring_pending(self->rings[i]);
	return PyLong_FromUnsignedLongLong(pending);
}

/* ---- drain ---- */

static int convert_until(PyObject *object, void *to)
{
	*(uint64_t *)to = object == Py_None ? UINT64_MAX : PyLong_AsUnsignedLongLong(object);
	return !PyErr_Occurred();
}

static int convert_offset(PyObject *object, void *to)
{
	*(uint64_t *)to = PyLong_AsUnsignedLongLongMask(object);
	return !PyErr_Occurred();
}

/* Lets one field of the results be built, or not if an earlier one failed. */
static PyObject *pair(PyObject *list, PyObject *item)
{
	if (list && (!item || PyList_Append(list, item)))
		Py_CLEAR(list);
	Py_XDECREF(item);
	return list;
}

static PyObject *take_batches(Drainer *self, struct walk *walk)
{
	struct state *state = state_of(self);
	PyObject *batches = PyList_New(walk->batches);

	for (uint32_t i = 0; i < walk->batches; i++) {
		PyObject *batch = batches ? batch_from(state, walk->touched[i]) : NULL;

		if (batch)
			PyList_SetItem(batches, i, batch);
		else
			Py_CLEAR(batches);
		if (!batches)
			slot_discard(walk->touched[i]);
	}
	return batches;
}

static PyObject *take_lost(Drainer *self)
{
	PyObject *lost = PyList_New(0);

	for (size_t i = 0; lost && i < self->count; i++) {
		struct ring *ring = self->rings[i];

		if (ring->lost)
			lost = pair(lost,
				    Py_BuildValue("iK", ring->cpu, (unsigned long long)ring->lost));
		ring->lost = 0;
	}
	return lost;
}

static PyObject *take_late(struct walk *walk)
{
	PyObject *late = PyList_New(0);

	for (uint32_t i = 0; walk->any_late && i < walk->batches; i++) {
		struct slot *slot = walk->touched[i];

		for (uint32_t cpu = 0; slot->was_late && cpu < slot->late.cpus; cpu++) {
			if (late && slot->late.counts[cpu])
				late = pair(
					late,
					Py_BuildValue("IIK", slot->key, cpu,
						      (unsigned long long)slot->late.counts[cpu]));
			slot->late.counts[cpu] = 0;
		}
	}
	return late;
}

static void take_counts(Drainer *self, uint64_t *malformed, uint64_t *skipped)
{
	*malformed = *skipped = 0;
	for (size_t i = 0; i < self->count; i++) {
		*malformed += self->rings[i]->malformed;
		*skipped += self->rings[i]->skipped;
		self->rings[i]->malformed = self->rings[i]->skipped = 0;
	}
}

/* Builds a Drained; takes the sequence over. */
static PyObject *take_all(Drainer *self, struct walk *walk, struct chunk *sequence)
{
	struct state *state = state_of(self);
	PyObject *late = take_late(walk); /* before the batches, which reset the slots */
	PyObject *batches = take_batches(self, walk);
	PyObject *lost = take_lost(self);
	PyObject *view = block_view(state, sequence, sequence ? walk->records : 0, 2, "H");
	PyObject *result = NULL;
	uint64_t malformed, skipped;

	take_counts(self, &malformed, &skipped);
	if (batches && lost && late && view)
		result = PyObject_CallFunction(
			state->drained, "OOOKKKOKnO", batches, view, lost,
			(unsigned long long)walk->unknown, (unsigned long long)malformed,
			(unsigned long long)skipped, late, (unsigned long long)walk->newest,
			(Py_ssize_t)walk->records, walk->more ? Py_True : Py_False);
	Py_XDECREF(batches);
	Py_XDECREF(view);
	Py_XDECREF(lost);
	Py_XDECREF(late);
	return result;
}

static int convert_budget(Drainer *self, PyObject *object, uint64_t *budget)
{
	long long wanted =
		object == Py_None ? (long long)self->default_budget : PyLong_AsLongLong(object);

	if (wanted == -1 && PyErr_Occurred())
		return -1;
	if (wanted < 1) {
		PyErr_Format(state_of(self)->ring_error,
			     "budget is %lld bytes, expected at least 1", wanted);
		return -1;
	}
	*budget = (uint64_t)wanted < self->largest_budget ? (uint64_t)wanted : self->largest_budget;
	return 0;
}

static PyObject *Drainer_drain(PyObject *object, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "until", "merge", "time_offset", "budget", NULL };
	Drainer *self = (Drainer *)object;
	PyObject *budget = Py_None, *result;
	struct chunk *sequence = NULL;
	struct walk walk = { .until = UINT64_MAX };
	uint64_t most;
	int merge = 1;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O&$pO&O:drain", names, convert_until,
					 &walk.until, &merge, convert_offset, &walk.offset,
					 &budget))
		return NULL;
	if (is_busy(self) || convert_budget(self, budget, &walk.budget))
		return NULL;
	walk.table = &self->table;
	walk.pool = self->pool;
	walk.rings = self->rings;
	walk.count = self->count;
	walk.newest = self->newest;
	walk.touched = self->touched;
	walk.unknown = self->unknown;
	most = walk_begin(&walk, self->framing, !merge);
	if (merge) {
		sequence = chunk_get(self->pool, most * sizeof *walk.sequence);
		if (!sequence) {
			walk_finish(&walk, self->framing);
			return PyErr_NoMemory();
		}
		walk.sequence = (uint16_t *)chunk_data(sequence);
	}
	walk_all(&walk, merge ? self->tree : NULL, self->framing);
	self->newest = walk.newest;
	if (walk.starved && !walk.records) {
		chunk_put(sequence);
		return PyErr_NoMemory();
	}
	self->unknown = 0;
	self->busy = true;
	result = take_all(self, &walk, sequence);
	self->busy = false;
	return result;
}

/* ---- read: one ring, in step with another ---- */

static PyObject *Drainer_read(PyObject *object, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "cpu", "until", NULL };
	Drainer *self = (Drainer *)object;
	uint64_t until = UINT64_MAX;
	PyObject *messages;
	int cpu;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i|O&:read", names, &cpu, convert_until,
					 &until))
		return NULL;
	if (is_busy(self))
		return NULL;
	self->busy = true;
	messages = PyList_New(0);
	for (size_t i = 0; messages && i < self->count; i++) {
		struct ring *ring = self->rings[i];

		if (ring->cpu != cpu)
			continue;
		if (ring->indexed) {
			Py_CLEAR(messages);
			PyErr_Format(state_of(self)->ring_error,
				     "ring of cpu %d: is a BPF ring buffer, only a perf ring can "
				     "be read in step",
				     cpu);
			break;
		}
		ring_begin(ring);
		perf_step(ring, self->framing);
		while (messages && ring->alive && ring->time <= until) {
			struct slot *slot =
				table_find(&self->table, load32(ring->message + self->framing.key));

			messages =
				pair(messages, PyBytes_FromStringAndSize(
						       (const char *)ring->message, ring->length));
			if (!messages)
				break;
			if (!slot)
				self->unknown++;
			else if (tally_grow(&slot->received, (uint32_t)cpu + 1))
				slot->received.counts[cpu]++;
			perf_step(ring, self->framing);
		}
		ring_publish(ring);
	}
	self->busy = false;
	return messages;
}

static PyMemberDef Drainer_members[] = {
	{ "framing", T_OBJECT, offsetof(Drainer, framing_object), READONLY,
	  "the Framing it was made with" },
	{ NULL },
};

#define WITH_KEYWORDS(function) \
	((PyCFunction)(void (*)(void))(function)), METH_VARARGS | METH_KEYWORDS

static PyMethodDef Drainer_methods[] = {
	{ "add_ring", WITH_KEYWORDS(Drainer_add_ring),
	  "add_ring(cpu, ring): drain this ring too." },
	{ "remove_ring", WITH_KEYWORDS(Drainer_remove_ring),
	  "remove_ring(cpu, ring=None): leave a ring and its memory alone." },
	{ "register", WITH_KEYWORDS(Drainer_register),
	  "register(key, fixed_size, ragged=False): collect messages of this key." },
	{ "unregister", Drainer_unregister, METH_O,
	  "unregister(key): count messages of this key as unknown." },
	{ "received", Drainer_received, METH_O,
	  "received(key): {cpu: records released since the key was registered}." },
	{ "pending", Drainer_pending, METH_NOARGS, "pending(): bytes waiting in all rings." },
	{ "drain", WITH_KEYWORDS(Drainer_drain),
	  "drain(until=None, *, merge=True, time_offset=0, budget=None): take what is due from all "
	  "rings." },
	{ "read", WITH_KEYWORDS(Drainer_read),
	  "read(cpu, until=None): whole messages of one CPU's perf ring, in ring order." },
	{ NULL },
};

static PyType_Slot Drainer_slots[] = {
	{ Py_tp_doc,
	  "Drainer(framing): many rings to typed batches. See _drain.pyi for the documentation." },
	{ Py_tp_new, Drainer_new },
	{ Py_tp_dealloc, Drainer_dealloc },
	{ Py_tp_traverse, Drainer_traverse },
	{ Py_tp_clear, Drainer_clear },
	{ Py_tp_members, Drainer_members },
	{ Py_tp_methods, Drainer_methods },
	{ 0, NULL },
};

static PyType_Spec Drainer_spec = {
	.name = "kprobe_modules.rings._drain.Drainer",
	.basicsize = sizeof(Drainer),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
	.slots = Drainer_slots,
};

/* ---- module ---- */

static PyObject *imported(const char *module_name, const char *name)
{
	PyObject *module = PyImport_ImportModule(module_name);
	PyObject *object = module ? PyObject_GetAttrString(module, name) : NULL;

	Py_XDECREF(module);
	return object;
}

static int module_exec(PyObject *module)
{
	const char *framing = "kprobe_modules.rings.framing";
	struct state *state = PyModule_GetState(module);

	state->ring_error = imported("kprobe_modules.errors", "RingError");
	state->drained = imported(framing, "Drained");
	state->tails = imported(framing, "Tails");
	state->check_registration = imported(framing, "check_registration");
	if (PyErr_Occurred())
		return -1;
	state->block = (PyTypeObject *)PyType_FromModuleAndSpec(module, &Block_spec, NULL);
	state->batch = (PyTypeObject *)PyType_FromModuleAndSpec(module, &Batch_spec, NULL);
	state->drainer = (PyTypeObject *)PyType_FromModuleAndSpec(module, &Drainer_spec, NULL);
	if (!state->block || !state->batch || !state->drainer)
		return -1;
	return PyModule_AddType(module, state->batch) || PyModule_AddType(module, state->drainer)
		       ? -1
		       : 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
	struct state *state = PyModule_GetState(module);

	Py_VISIT(state->ring_error);
	Py_VISIT(state->drained);
	Py_VISIT(state->tails);
	Py_VISIT(state->check_registration);
	Py_VISIT(state->block);
	Py_VISIT(state->batch);
	Py_VISIT(state->drainer);
	return 0;
}

static int module_clear(PyObject *module)
{
	struct state *state = PyModule_GetState(module);

	Py_CLEAR(state->ring_error);
	Py_CLEAR(state->drained);
	Py_CLEAR(state->tails);
	Py_CLEAR(state->check_registration);
	Py_CLEAR(state->block);
	Py_CLEAR(state->batch);
	Py_CLEAR(state->drainer);
	return 0;
}

static PyModuleDef_Slot module_slots[] = {
	{ Py_mod_exec, module_exec },
	{ 0, NULL },
};

static struct PyModuleDef module_definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "kprobe_modules.rings._drain",
	.m_doc = "The native drainer; _drain_py is its twin.",
	.m_size = sizeof(struct state),
	.m_slots = module_slots,
	.m_traverse = module_traverse,
	.m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__drain(void)
{
	return PyModuleDef_Init(&module_definition);
}
