// The GPU side of device.h in a build without GPU kernels.
#include "fdpp/device.h"
#include "kernels/common/gpu_counter.h"

namespace fdpp {
namespace {

Status no_gpu() { return not_supported("this build of fdpp_ort has no GPU kernels (it was built without nvcc)"); }

}  // namespace

Status gpu_device(int, DeviceInfo*) { return no_gpu(); }
Status current_gpu_device(DeviceInfo*) { return no_gpu(); }
const char* gpu_architectures() { return ""; }

DeviceFault::~DeviceFault() = default;
Status DeviceFault::create() { return no_gpu(); }
Status DeviceFault::take(const char*) { return {}; }

Status allocate_gpu_counter(uint64_t**) { return no_gpu(); }
Status read_gpu_counter(const uint64_t*, uint64_t*) { return no_gpu(); }
void free_gpu_counter(uint64_t*) {}

GpuStream::~GpuStream() = default;
Status GpuStream::create(int) { return no_gpu(); }
Status GpuStream::wait() const { return {}; }

HostMailbox::~HostMailbox() = default;
Status HostMailbox::create(const GpuStream&, size_t) { return no_gpu(); }
Status HostMailbox::mark(const GpuStream&) { return {}; }
Status HostMailbox::wait() const { return {}; }

}  // namespace fdpp
