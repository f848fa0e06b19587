/* libcuda.so.1 on the virtual GPU: every entry of the driver's interface forwards to a Python callback.
 *
 * entries.h, made from tcomp/runtime/vgpu/shim's table beside this file, has one line per entry:
 *   E(number, symbol, base name, first CUDA version, per-thread-stream variant, arguments)
 * Arguments travel as 64-bit integers: no entry takes floating point or a structure of more than 8 bytes by value,
 * so each argument fills one register or one stack slot, and the callback narrows it to the type it declares.
 * When no callbacks are registered yet (the library was found by LD_LIBRARY_PATH), the first call imports
 * tcomp.runtime.vgpu.shim in the Python interpreter of this process, which registers them.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define NOT_FOUND 500
#define INVALID_VALUE 1
#define NO_DEVICE 100
#define PER_THREAD_STREAM 2

typedef uint64_t A;
typedef void (*Function)(void);
typedef struct { const char *base; int since, per_thread; Function address; } Named;

enum {
#define E(number, symbol, base, since, per_thread, arity) INDEX_##symbol = number,
#include "entries.h"
#undef E
    ENTRIES
};

static Function callbacks[ENTRIES];
static volatile int registered;

/* Called by Python: the callbacks in the order of entries.h. */
void tcomp_vgpu_register(Function *given, int count) {
    for (int n = 0; n < count && n < ENTRIES; n++) callbacks[n] = given[n];
    __sync_synchronize();
    registered = 1;
}

static int import_python(void) {
    int (*is_initialized)(void) = (int (*)(void))dlsym(RTLD_DEFAULT, "Py_IsInitialized");
    int (*ensure)(void) = (int (*)(void))dlsym(RTLD_DEFAULT, "PyGILState_Ensure");
    void (*release)(int) = (void (*)(int))dlsym(RTLD_DEFAULT, "PyGILState_Release");
    int (*run)(const char *) = (int (*)(const char *))dlsym(RTLD_DEFAULT, "PyRun_SimpleString");
    if (!is_initialized || !ensure || !release || !run || !is_initialized()) {
        fprintf(stderr, "tcomp virtual GPU: this libcuda.so.1 needs a Python interpreter in the process\n");
        return NO_DEVICE;
    }
    Dl_info self;
    char code[4600];
    if (!dladdr((void *)&registered, &self) || strpbrk(self.dli_fname, "'\\\n") || strlen(self.dli_fname) > 4096)
        return NO_DEVICE;
    snprintf(code, sizeof code, "from tcomp.runtime.vgpu.shim.load import attach\nattach('%s')\n", self.dli_fname);
    int state = ensure();
    if (!registered) run(code);
    release(state);
    if (registered) return 0;
    fprintf(stderr, "tcomp virtual GPU: tcomp cannot be imported in this Python, so there is no device\n");
    return NO_DEVICE;
}

static inline Function callback(int n, int *error) {
    *error = registered ? 0 : import_python();
    return callbacks[n];
}

#define T0 void
#define T1 A a
#define T2 T1, A b
#define T3 T2, A c
#define T4 T3, A d
#define T5 T4, A e
#define T6 T5, A f
#define T7 T6, A g
#define T8 T7, A h
#define T9 T8, A i
#define T10 T9, A j
#define T11 T10, A k
#define T12 T11, A l
#define T13 T12, A m
#define T14 T13, A n
#define T15 T14, A o
#define V0
#define V1 a
#define V2 V1, b
#define V3 V2, c
#define V4 V3, d
#define V5 V4, e
#define V6 V5, f
#define V7 V6, g
#define V8 V7, h
#define V9 V8, i
#define V10 V9, j
#define V11 V10, k
#define V12 V11, l
#define V13 V12, m
#define V14 V13, n
#define V15 V14, o

#define E(number, symbol, base, since, per_thread, arity)             \
    int symbol(T##arity) {                                            \
        int error;                                                    \
        int (*call)(T##arity) = (int (*)(T##arity))callback(number, &error); \
        return error ? error : call(V##arity);                        \
    }
#include "entries.h"
#undef E

int cuGetProcAddress(const char *name, void **found, int version, uint64_t flags);
int cuGetProcAddress_v2(const char *name, void **found, int version, uint64_t flags, int *status);
int cuGetExportTable(const void **table, const void *id);

static const Named names[] = {
#define E(number, symbol, base, since, per_thread, arity) {base, since, per_thread, (Function)symbol},
#include "entries.h"
#undef E
    {"cuGetProcAddress", 11030, 0, (Function)cuGetProcAddress},
    {"cuGetProcAddress", 12000, 0, (Function)cuGetProcAddress_v2},
    {"cuGetExportTable", 3000, 0, (Function)cuGetExportTable},
};

/* The newest variant that is no newer than `version`; status 1: no such name, 2: it is newer than asked for. */
int cuGetProcAddress_v2(const char *name, void **found, int version, uint64_t flags, int *status) {
    if (!name || !found) return INVALID_VALUE;
    const Named *best = NULL;
    int known = 0, wanted = (flags & PER_THREAD_STREAM) != 0;
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        const Named *one = &names[n];
        if (strcmp(one->base, name) || (one->per_thread && !wanted)) continue;
        known = 1;
        if (one->since > version) continue;
        if (!best || one->since > best->since || (one->since == best->since && one->per_thread)) best = one;
    }
    *found = best ? (void *)best->address : NULL;
    if (status) *status = best ? 0 : known ? 2 : 1;
    return best || status ? 0 : NOT_FOUND;
}

int cuGetProcAddress(const char *name, void **found, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, found, version, flags, NULL);
}

int cuGetExportTable(const void **table, const void *id) {
    (void)id;
    if (table) *table = NULL;
    return NOT_FOUND;
}
