/* NVIDIA's driver as far as qcompile asks it, with the answers that the environment gives. */
#include <stdlib.h>
#include <string.h>

static int told(const char *name, int otherwise)
{
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}

int cuInit(unsigned flags) { return told("GPUS", 1) ? 0 : 100; }
int cuDeviceGetCount(int *count) { return *count = told("GPUS", 1), 0; }
int cuDriverGetVersion(int *version) { return *version = told("DRIVER", 13000), 0; }
int cuDeviceGet(int *device, int number) { return *device = number, number < told("GPUS", 1) ? 0 : 101; }
int cuDeviceGetName(char *name, int size, int device) { return strncpy(name, "NVIDIA Stub 1000", size), 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    const int capability = told("CAPABILITY", 90);
    return *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : 0, 0;
}
