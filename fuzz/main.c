/* libFuzzer's main program for a target in Cython: starts an interpreter, imports the target, and from then on calls
   its C function alone. TARGET is the module's name. */
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef int (*one_input_t)(const uint8_t *, size_t);

static one_input_t one_input;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    Py_InitializeEx(0);
    PyObject *module = PyImport_ImportModule(TARGET);
    PyObject *api = module ? PyObject_GetAttrString(module, "__pyx_capi__") : NULL;
    PyObject *capsule = api ? PyDict_GetItemString(api, "one_input") : NULL;
    if (capsule)
        one_input = (one_input_t)PyCapsule_GetPointer(capsule, "int (uint8_t const *, size_t)");
    if (!one_input) {
        PyErr_Print();
        fprintf(stderr, "%s: cannot be imported\n", TARGET);
        exit(2);
    }
    PyEval_SaveThread();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int broken = one_input(data, size);
    if (broken) {
        fprintf(stderr, "%s: property %d is broken\n", TARGET, broken);
        abort();
    }
    return 0;
}
