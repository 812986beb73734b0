// logical_gpus: preloaded into a CUDA program, makes each GPU of the machine look like several, each with a memory limit.
//
//     cc -shared -fPIC -O2 -o logical_gpus.so logical_gpus.c -ldl
//     LD_PRELOAD=$PWD/logical_gpus.so LOGICAL_GPUS=2 LOGICAL_GPU_MIB=16311 llama-diffusion-cli ...
//
// What a program does for several GPUs (one buffer, stream, pool and handle a device, copies between them, the choice of
// where a buffer goes when one is full) then runs for real on one card. What it can't show: the link between two cards,
// and two cards at work at the same time.
//
// LOGICAL_GPUS              how many devices the program sees (default 2); logical device i is real device i % (real count)
// LOGICAL_GPU_MIB           memory of each in MiB, one number or a list (11264,16311); without it, what the card has
// LOGICAL_GPU_RESERVED_MIB  of that, what the driver and the libraries take before the program's first byte (default 512)
//
// Only what ggml-cuda calls with a device number, or to get memory, is looked at. Compiled without CUDA's headers: the
// declarations below are those of its public ABI, CUDA 12 and 13.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_GPUS = 16, MAX_BLOCKS = 1 << 16, OUT_OF_MEMORY = 2, MIB = 1 << 20 };

// --- the real functions --------------------------------------------------------------------------------------------

static void * find(const char * name) {
    static const char * const libraries[] = { "libcudart.so.13", "libcudart.so.12", "libcuda.so.1" };
    void * function = dlsym(RTLD_NEXT, name);
    // a backend that was opened with dlopen keeps its libraries to itself
    for (size_t i = 0; !function && i < sizeof(libraries) / sizeof(libraries[0]); i++) {
        void * library = dlopen(libraries[i], RTLD_LAZY | RTLD_NOLOAD);
        function = library ? dlsym(library, name) : NULL;
    }
    if (!function) {
        fprintf(stderr, "logical_gpus: there is no %s to call\n", name);
        abort();
    }
    return function;
}

#define REAL(name, ...)                                                     \
    static int (*real)(__VA_ARGS__);                                        \
    if (!real) { real = (int (*)(__VA_ARGS__)) find(#name); }

// --- logical devices -----------------------------------------------------------------------------------------------

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static __thread int    current;            // of this thread, as the program sees it
static size_t          limits[MAX_GPUS];   // bytes; 0: what the card has
static size_t          used[MAX_GPUS];     // bytes
static size_t          reserved;           // bytes

static struct block { const void * at; size_t size; int device; } blocks[MAX_BLOCKS];
static int n_blocks;

static int count(void) {
    static int n;
    if (n == 0) {
        const char * text = getenv("LOGICAL_GPUS");
        n = text ? atoi(text) : 2;
        if (n < 1 || n > MAX_GPUS) {
            fprintf(stderr, "logical_gpus: LOGICAL_GPUS=%s is not a number from 1 to %d\n", text, MAX_GPUS);
            exit(2);
        }
        const char * mib = getenv("LOGICAL_GPU_MIB");
        for (int i = 0; mib && *mib && i < n; i++) {
            limits[i] = strtoull(mib, NULL, 10) * MIB;
            const char * next = strchr(mib, ',');
            mib = next ? next + 1 : mib;
        }
        text     = getenv("LOGICAL_GPU_RESERVED_MIB");
        reserved = (text ? strtoull(text, NULL, 10) : 512) * MIB;
    }
    return n;
}

static int real_count(void) {
    static int n;
    if (n == 0) {
        REAL(cudaGetDeviceCount, int *)
        if (real(&n) != 0) { n = 0; }
    }
    return n;
}

static int real_device(int device) { const int n = real_count(); return n > 0 ? device % n : device; }

// Takes size bytes of the device's limit; false where they are not there.
static int take(int device, size_t size) {
    count();
    pthread_mutex_lock(&mutex);
    const int fits = limits[device] == 0 || used[device] + size + reserved <= limits[device];
    if (fits) { used[device] += size; }
    pthread_mutex_unlock(&mutex);
    return fits;
}

static void give(int device, size_t size) {
    pthread_mutex_lock(&mutex);
    used[device] -= size;
    pthread_mutex_unlock(&mutex);
}

static void remember(const void * at, size_t size, int device) {
    pthread_mutex_lock(&mutex);
    if (n_blocks == MAX_BLOCKS) {
        fprintf(stderr, "logical_gpus: more than %d blocks of memory\n", MAX_BLOCKS);
        abort();
    }
    blocks[n_blocks++] = (struct block) { at, size, device };
    pthread_mutex_unlock(&mutex);
}

// Forgets the blocks that start in [at, at + size) and gives their memory back.
static void forget(const void * at, size_t size) {
    pthread_mutex_lock(&mutex);
    for (int i = n_blocks - 1; i >= 0; i--) {
        if ((const char *) blocks[i].at >= (const char *) at && (const char *) blocks[i].at < (const char *) at + size) {
            used[blocks[i].device] -= blocks[i].size;
            blocks[i] = blocks[--n_blocks];
        }
    }
    pthread_mutex_unlock(&mutex);
}

// --- the runtime ---------------------------------------------------------------------------------------------------

int cudaGetDeviceCount(int * n) {
    REAL(cudaGetDeviceCount, int *)
    const int status = real(n);
    if (status == 0 && *n > 0) { *n = count(); }
    return status;
}

int cudaSetDevice(int device) {
    REAL(cudaSetDevice, int)
    const int status = real(real_device(device));
    if (status == 0) { current = device; }
    return status;
}

int cudaGetDevice(int * device) {
    REAL(cudaGetDevice, int *)
    const int status = real(device);
    if (status == 0) { *device = current; }
    return status;
}

// In both versions of the structure: name[256], uuid[16], luid[8], a mask of 4 bytes, then the memory's size.
static int properties(int (*real)(void *, int), void * prop, int device) {
    const int status = real(prop, real_device(device));
    count();
    if (status == 0 && limits[device]) { memcpy((char *) prop + 288, &limits[device], sizeof(size_t)); }
    return status;
}

int cudaGetDeviceProperties(void * prop, int device) {
    REAL(cudaGetDeviceProperties, void *, int)
    return properties(real, prop, device);
}

int cudaGetDeviceProperties_v2(void * prop, int device) {
    REAL(cudaGetDeviceProperties_v2, void *, int)
    return properties(real, prop, device);
}

int cudaDeviceGetAttribute(int * value, int attribute, int device) {
    REAL(cudaDeviceGetAttribute, int *, int, int)
    return real(value, attribute, real_device(device));
}

// A program resets a device that it does not use; here that is a device that another one stands on.
int cudaDeviceReset(void) {
    return 0;
}

// Every device needs an address of its own: the last digit is the function, which no card uses for another card.
int cudaDeviceGetPCIBusId(char * id, int size, int device) {
    REAL(cudaDeviceGetPCIBusId, char *, int, int)
    const int status = real(id, size, real_device(device));
    const size_t length = status == 0 ? strlen(id) : 0;
    if (length > 0 && device >= real_count()) { id[length - 1] = "0123456789abcdef"[device % 16]; }
    return status;
}

int cudaMemGetInfo(size_t * left, size_t * total) {
    REAL(cudaMemGetInfo, size_t *, size_t *)
    const int status = real(left, total);
    count();
    if (status == 0 && limits[current]) {
        const size_t taken = used[current] + reserved;
        const size_t own   = limits[current] > taken ? limits[current] - taken : 0;
        *left  = own < *left ? own : *left;
        *total = limits[current];
    }
    return status;
}

int cudaMalloc(void ** at, size_t size) {
    REAL(cudaMalloc, void **, size_t)
    if (!take(current, size)) { *at = NULL; return OUT_OF_MEMORY; }
    const int status = real(at, size);
    if (status == 0) { remember(*at, size, current); } else { give(current, size); }
    return status;
}

int cudaFree(void * at) {
    REAL(cudaFree, void *)
    if (at) { forget(at, 1); }
    return real(at);
}

int cudaDeviceCanAccessPeer(int * can, int device, int peer) {
    REAL(cudaDeviceCanAccessPeer, int *, int, int)
    if (real_device(device) != real_device(peer)) { return real(can, real_device(device), real_device(peer)); }
    *can = device != peer;
    return 0;
}

int cudaDeviceEnablePeerAccess(int peer, unsigned int flags) {
    REAL(cudaDeviceEnablePeerAccess, int, unsigned int)
    return real_device(current) == real_device(peer) ? 0 : real(real_device(peer), flags);
}

int cudaMemcpyPeerAsync(void * to, int to_device, const void * from, int from_device, size_t size, void * stream) {
    if (real_device(to_device) == real_device(from_device)) {
        REAL(cudaMemcpyAsync, void *, const void *, size_t, int, void *)
        return real(to, from, size, /* device to device */ 3, stream);
    }
    REAL(cudaMemcpyPeerAsync, void *, int, const void *, int, size_t, void *)
    return real(to, real_device(to_device), from, real_device(from_device), size, stream);
}

struct peer_copy { // cudaMemcpy3DPeerParms
    void * from_array; size_t from_pos[3]; struct { void * at; size_t pitch, x, y; } from; int from_device;
    void * to_array;   size_t to_pos[3];   struct { void * at; size_t pitch, x, y; } to;   int to_device;
    size_t extent[3];
};

int cudaMemcpy3DPeerAsync(const struct peer_copy * copy, void * stream) {
    REAL(cudaMemcpy3DPeerAsync, const struct peer_copy *, void *)
    struct peer_copy mine = *copy;
    mine.from_device = real_device(copy->from_device);
    mine.to_device   = real_device(copy->to_device);
    return real(&mine, stream);
}

// --- the driver: memory pools made of mapped pieces ------------------------------------------------------------------

struct location { int type, id; };
struct allocation { int type, handles; struct location location; char rest[64]; }; // CUmemAllocationProp, and more
struct access { struct location location; int flags; };                             // CUmemAccessDesc

int cuDeviceGet(int * handle, int device) {
    REAL(cuDeviceGet, int *, int)
    return real(handle, real_device(device));
}

static struct allocation mapped(const void * prop) {
    struct allocation mine;
    memcpy(&mine, prop, 32); // sizeof(CUmemAllocationProp)
    mine.location.id = real_device(mine.location.id);
    return mine;
}

int cuMemGetAllocationGranularity(size_t * size, const struct allocation * prop, int option) {
    REAL(cuMemGetAllocationGranularity, size_t *, const void *, int)
    const struct allocation mine = mapped(prop);
    return real(size, &mine, option);
}

int cuMemCreate(unsigned long long * handle, size_t size, const struct allocation * prop, unsigned long long flags) {
    REAL(cuMemCreate, unsigned long long *, size_t, const void *, unsigned long long)
    const int device = prop->location.id;
    if (!take(device, size)) { return OUT_OF_MEMORY; }
    const struct allocation mine = mapped(prop);
    const int status = real(handle, size, &mine, flags);
    // the handle is released as soon as it is mapped: the mapping holds the memory
    if (status == 0) { remember((const void *) (size_t) *handle, size, device); } else { give(device, size); }
    return status;
}

int cuMemMap(unsigned long long at, size_t size, size_t offset, unsigned long long handle, unsigned long long flags) {
    REAL(cuMemMap, unsigned long long, size_t, size_t, unsigned long long, unsigned long long)
    const int status = real(at, size, offset, handle, flags);
    pthread_mutex_lock(&mutex);
    for (int i = 0; status == 0 && i < n_blocks; i++) {
        if (blocks[i].at == (const void *) (size_t) handle) { blocks[i].at = (const void *) (size_t) at; }
    }
    pthread_mutex_unlock(&mutex);
    return status;
}

int cuMemSetAccess(unsigned long long at, size_t size, const struct access * access, size_t n) {
    REAL(cuMemSetAccess, unsigned long long, size_t, const struct access *, size_t)
    for (size_t i = 0; i < n; i++) {
        struct access mine = access[i];
        mine.location.id = real_device(mine.location.id);
        const int status = real(at, size, &mine, 1);
        if (status != 0) { return status; }
    }
    return 0;
}

int cuMemUnmap(unsigned long long at, size_t size) {
    REAL(cuMemUnmap, unsigned long long, size_t)
    forget((const void *) (size_t) at, size);
    return real(at, size);
}
