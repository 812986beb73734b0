// A stand-in for the NVIDIA driver's libcuda.so.1 while linking: no wheel carries one, and CMake's CUDA::cuda_driver
// must find a library. Only the functions that ggml-cuda calls are here; each reports that there is no device.
// It stays in the build stage and never ships.

#define CUDA_ERROR_NO_DEVICE 100

#define STUB(name) int name(void); int name(void) { return CUDA_ERROR_NO_DEVICE; }

STUB(cuDeviceGet)
STUB(cuDeviceGetAttribute)
STUB(cuGetErrorString)
STUB(cuMemAddressFree)
STUB(cuMemAddressReserve)
STUB(cuMemCreate)
STUB(cuMemGetAllocationGranularity)
STUB(cuMemMap)
STUB(cuMemRelease)
STUB(cuMemSetAccess)
STUB(cuMemUnmap)
