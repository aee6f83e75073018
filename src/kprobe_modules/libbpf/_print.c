/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kprobe_modules.libbpf._print: what libbpf prints, without what nobody reads.
 *
 * libbpf has a thousand things to say about a module's load to who debugs it, and a call
 * into Python for each takes longer than many a system call of the load. What the functions
 * promise is written in _print.pyi.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdarg.h>
#include <stdbool.h>

/* libbpf_print_fn_t and enum libbpf_print_level of <bpf/libbpf.h>. */
typedef int (*print_function)(int level, const char *format, va_list arguments);

#define DEBUG 2

static _Thread_local bool quiet;

/* libbpf passes its print function nothing of ours: a function for each libbpf. */
#define LIBRARIES 4

static print_function behind[LIBRARIES];

#define FILTER(number)                                                               \
	static int filter_##number(int level, const char *format, va_list arguments) \
	{                                                                            \
		if (quiet && level >= DEBUG)                                         \
			return 0;                                                    \
		return behind[number](level, format, arguments);                     \
	}

FILTER(0)
FILTER(1)
FILTER(2)
FILTER(3)

static const print_function filters[LIBRARIES] = { filter_0, filter_1, filter_2, filter_3 };

static PyObject *filtered(PyObject *Py_UNUSED(module), PyObject *address)
{
	print_function function = (print_function)PyLong_AsVoidPtr(address);

	if (!function && PyErr_Occurred())
		return NULL;
	for (int i = 0; i < LIBRARIES; i++)
		if (!behind[i]) {
			behind[i] = function;
			return PyLong_FromVoidPtr((void *)filters[i]);
		}
	return Py_NewRef(address);
}

static PyObject *set_quiet(PyObject *Py_UNUSED(module), PyObject *value)
{
	bool before = quiet;
	int wanted = PyObject_IsTrue(value);

	if (wanted < 0)
		return NULL;
	quiet = wanted;
	return PyBool_FromLong(before);
}

static PyMethodDef functions[] = {
	{ "filtered", filtered, METH_O, "filtered(address): of a function in front of it." },
	{ "set_quiet", set_quiet, METH_O, "set_quiet(value): for this thread; what it was." },
	{ NULL },
};

static PyModuleDef_Slot slots[] = {
	{ 0, NULL },
};

static struct PyModuleDef definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "kprobe_modules.libbpf._print",
	.m_doc = "What libbpf prints, without what nobody reads.",
	.m_methods = functions,
	.m_slots = slots,
};

PyMODINIT_FUNC PyInit__print(void)
{
	return PyModuleDef_Init(&definition);
}
