/* A CUDA without a device, enough for ONNX Runtime to build sessions of its CUDA provider.
 *
 * What has to be true for that, found by trying:
 *   - there is one device, it has a compute capability the provider was built for, and plenty of memory;
 *   - an allocation yields memory of the host, and a copy copies, because shapes and constants are read back;
 *   - handles of streams, events, memory pools and libraries are distinct and not null;
 *   - everything else may answer "success" and do nothing; those functions are generated when this is built.
 * So placement, fusion and errors are the provider's own, while results and times mean nothing.
 */
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#undef cudaGetDeviceProperties

#define GIB ((size_t)1 << 30)
#define SUCCESS 0

static int fresh_handle(void **handle) { return (*handle = malloc(64)) ? SUCCESS : 2; }
static int allocate(void **memory, size_t bytes) { return (*memory = malloc(bytes + 1)) ? SUCCESS : 2; }

/* The device: of the Hopper kind. */
int cuInit(unsigned flags) { return (void)flags, SUCCESS; }
int cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
int cuDeviceGet(int *device, int number) { return *device = number, number == 0 ? SUCCESS : 101; }
int cuDeviceGetName(char *name, int size, int device) { return (void)device, strncpy(name, "no device", size), SUCCESS; }
int cuDriverGetVersion(int *version) { return *version = CUDART_VERSION, SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    return (void)device, *value = attribute == 38 ? 4096 : attribute == 75 ? 9 : 0, SUCCESS; /* L2 cache, capability */
}
int cuDevicePrimaryCtxRetain(void **context, int device) { return (void)device, fresh_handle(context); }
int cuCtxSetCurrent(void *context) { return (void)context, SUCCESS; }
int cuCtxSynchronize(void) { return SUCCESS; }
cudaError_t cudaGetDeviceCount(int *count) { return *count = 1, SUCCESS; }
cudaError_t cudaGetDevice(int *device) { return *device = 0, SUCCESS; }
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = CUDART_VERSION, SUCCESS; }
cudaError_t cudaDriverGetVersion(int *version) { return *version = CUDART_VERSION, SUCCESS; }
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *all) { return *free_bytes = *all = 64 * GIB, SUCCESS; }

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *device, int index)
{
    (void)index;
    memset(device, 0, sizeof *device);
    strcpy(device->name, "no device");
    device->major = 9;
    device->warpSize = 32;
    device->multiProcessorCount = 100;
    device->totalGlobalMem = 64 * GIB;
    device->maxThreadsPerBlock = 1024;
    device->maxThreadsPerMultiProcessor = 2048;
    device->sharedMemPerBlock = 48 << 10;
    device->sharedMemPerBlockOptin = 227 << 10;
    device->sharedMemPerMultiprocessor = 228 << 10;
    device->regsPerBlock = 1 << 16;
    for (int axis = 0; axis < 3; ++axis) {
        device->maxThreadsDim[axis] = 1024;
        device->maxGridSize[axis] = 65535;
    }
    return SUCCESS;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int index)
{
    (void)index;
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrMultiProcessorCount: *value = 100; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 << 10; break;
    default: *value = 0;
    }
    return SUCCESS;
}

/* Memory: the host's. */
cudaError_t cudaMalloc(void **memory, size_t bytes) { return allocate(memory, bytes); }
cudaError_t cudaMallocHost(void **memory, size_t bytes) { return allocate(memory, bytes); }
cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned flags) { return (void)flags, allocate(memory, bytes); }
cudaError_t cudaMallocFromPoolAsync(void **memory, size_t bytes, cudaMemPool_t pool, cudaStream_t stream)
{
    return (void)pool, (void)stream, allocate(memory, bytes);
}
cudaError_t cudaFree(void *memory) { return free(memory), SUCCESS; }
cudaError_t cudaFreeHost(void *memory) { return free(memory), SUCCESS; }
cudaError_t cudaFreeAsync(void *memory, cudaStream_t stream) { return (void)stream, free(memory), SUCCESS; }
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    return (void)kind, memmove(to, from, bytes), SUCCESS;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    return (void)stream, cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemset(void *to, int value, size_t bytes) { return memset(to, value, bytes), SUCCESS; }
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    return (void)stream, cudaMemset(to, value, bytes);
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *memory)
{
    return (void)memory, memset(attributes, 0, sizeof *attributes), SUCCESS;
}

/* Handles. */
cudaError_t cudaStreamCreate(cudaStream_t *stream) { return fresh_handle((void **)stream); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { return (void)flags, fresh_handle((void **)stream); }
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status)
{
    return (void)stream, *status = cudaStreamCaptureStatusNone, SUCCESS;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return fresh_handle((void **)event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { return (void)flags, fresh_handle((void **)event); }
int cuStreamCreate(void **stream, unsigned flags) { return (void)flags, fresh_handle(stream); }
cudaError_t cudaMemPoolCreate(cudaMemPool_t *pool, const struct cudaMemPoolProps *wanted)
{
    return (void)wanted, fresh_handle((void **)pool);
}
int cublasCreate_v2(void **handle) { return fresh_handle(handle); }
int cublasLtCreate(void **handle) { return fresh_handle(handle); }
int cublasGetMathMode(void *handle, int *mode) { return (void)handle, *mode = 0, SUCCESS; }
int curandCreateGenerator(void **generator, int kind) { return (void)kind, fresh_handle(generator); }

/* Events of the driver keep the host's time, which is when the stub is done with all before them. */
int cuEventCreate(void **event, unsigned flags) { return (void)flags, fresh_handle(event); }
int cuEventRecord(void *event, void *stream) { return (void)stream, clock_gettime(CLOCK_MONOTONIC, event); }
int cuEventSynchronize(void *event) { return (void)event, SUCCESS; }
int cuEventElapsedTime(float *milliseconds, const struct timespec *start, const struct timespec *end)
{
    *milliseconds = (end->tv_sec - start->tv_sec) * 1e3f + (end->tv_nsec - start->tv_nsec) * 1e-6f;
    return SUCCESS;
}

/* Graphs: a capture holds nothing, so a replay does nothing; both are counted. */
static int captures, launches;
int cuda_stub_captures(void) { return captures; }
int cuda_stub_launches(void) { return launches; }
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    return (void)stream, ++captures, fresh_handle((void **)graph);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags)
{
    return (void)graph, (void)flags, fresh_handle((void **)made);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream)
{
    return (void)graph, (void)stream, ++launches, SUCCESS;
}

/* Names of errors, and the registration of kernels, whose answer is used as a pointer. */
const char *cudaGetErrorName(cudaError_t error) { return (void)error, "none"; }
int cuGetErrorString(int error, const char **text) { return (void)error, *text = "there is no device", SUCCESS; }
const char *cudaGetErrorString(cudaError_t error) { return (void)error, "there is no device"; }
const char *cublasGetStatusName(int status) { return (void)status, "none"; }
const char *cublasGetStatusString(int status) { return (void)status, "there is no device"; }
void **__cudaRegisterFatBinary(void *binary)
{
    static void *registered;
    return (void)binary, &registered;
}
