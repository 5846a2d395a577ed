// What GPU this is, and the small things of it that the host holds: fault words, counters, streams, mailboxes.
#include <cstring>
#include <map>
#include <mutex>

#include "fdpp/device.h"
#include "kernels/common/fault_code.h"
#include "kernels/common/gpu.h"
#include "kernels/common/gpu_counter.h"

namespace fdpp {

namespace {

Status query(int ordinal, DeviceInfo* out) {
  int count = 0;
  FDPP_GPU(cudaGetDeviceCount(&count));
  if (ordinal < 0 || ordinal >= count)
    return device_error("GPU " + std::to_string(ordinal) + " does not exist; this machine has " + std::to_string(count));
  cudaDeviceProp properties;
  FDPP_GPU(cudaGetDeviceProperties(&properties, ordinal));
  int memory_clock_khz = 0;
  FDPP_GPU(cudaDeviceGetAttribute(&memory_clock_khz, cudaDevAttrMemoryClockRate, ordinal));
  DeviceInfo d;
  d.backend = Backend::cuda;
  d.ordinal = ordinal;
  d.name = properties.name;
  d.compute_capability = 10 * properties.major + properties.minor;
  d.multiprocessors = properties.multiProcessorCount;
  d.l2_bytes = properties.l2CacheSize;
  d.shared_memory_per_block = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
  d.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  // Two transfers a clock, bus width in bits.
  d.memory_bandwidth = 2.0 * memory_clock_khz * 1e3 * properties.memoryBusWidth / 8;
  *out = d;
  return {};
}

// What `action` returns, with GPU `ordinal` current while it runs.
template <typename Action>
Status on_gpu(int ordinal, Action action) {
  int current = 0;
  FDPP_GPU(cudaGetDevice(&current));
  FDPP_GPU(cudaSetDevice(ordinal));
  const Status status = action();
  FDPP_GPU(cudaSetDevice(current));
  return status;
}

}  // namespace

Status gpu_device(int ordinal, DeviceInfo* out) {
  // Properties do not change while a process lives and take a while to read.
  static std::mutex mutex;
  static std::map<int, DeviceInfo> known;
  std::lock_guard<std::mutex> lock(mutex);
  auto it = known.find(ordinal);
  if (it == known.end()) {
    DeviceInfo device;
    FDPP_RETURN_IF_ERROR(query(ordinal, &device));
    it = known.emplace(ordinal, device).first;
  }
  *out = it->second;
  return {};
}

Status current_gpu_device(DeviceInfo* out) {
  int ordinal = 0;
  FDPP_GPU(cudaGetDevice(&ordinal));
  return gpu_device(ordinal, out);
}

const char* gpu_architectures() { return FDPP_GPU_ARCHITECTURES; }

DeviceFault::~DeviceFault() {
  // Nobody is left to hear of an error here.
  if (host_ != nullptr) (void)cudaFreeHost(host_);
}

Status DeviceFault::create() {
  FDPP_GPU(cudaHostAlloc(reinterpret_cast<void**>(&host_), sizeof(int32_t), cudaHostAllocMapped | cudaHostAllocPortable));
  *host_ = kNoFault;
  FDPP_GPU(cudaHostGetDevicePointer(reinterpret_cast<void**>(&device_), host_, 0));
  return {};
}

Status DeviceFault::take(const char* op) {
  if (host_ == nullptr) return {};
  const int32_t code = *static_cast<volatile int32_t*>(host_);
  if (code == kNoFault) return {};
  *static_cast<volatile int32_t*>(host_) = kNoFault;
  return invalid_argument(std::string(op) + ": an earlier call on the GPU " + fault_meaning(code));
}

Status allocate_gpu_counter(uint64_t** word) {
  FDPP_GPU(cudaMalloc(reinterpret_cast<void**>(word), sizeof(uint64_t)));
  FDPP_GPU(cudaMemset(*word, 0, sizeof(uint64_t)));
  return {};
}

Status read_gpu_counter(const uint64_t* word, uint64_t* count) {
  cudaPointerAttributes attributes;
  FDPP_GPU(cudaPointerGetAttributes(&attributes, word));
  return on_gpu(attributes.device, [&]() -> Status {
    // The kernels that add to it run on streams of their own, which the copy does not wait for.
    FDPP_GPU(cudaDeviceSynchronize());
    FDPP_GPU(cudaMemcpy(count, word, sizeof(uint64_t), cudaMemcpyDeviceToHost));
    return {};
  });
}

void free_gpu_counter(uint64_t* word) {
  if (word != nullptr) (void)cudaFree(word);
}

GpuStream::~GpuStream() {
  if (handle_ != nullptr) (void)cudaStreamDestroy(static_cast<cudaStream_t>(handle_));
}

Status GpuStream::create(int ordinal) {
  ordinal_ = ordinal;
  return on_gpu(ordinal, [&]() -> Status {
    cudaStream_t stream = nullptr;
    // Work of the default stream, anyone's in this process, would stop a capture on a stream that waits for it.
    FDPP_GPU(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    handle_ = stream;
    return {};
  });
}

Status GpuStream::wait() const {
  FDPP_GPU(cudaStreamSynchronize(static_cast<cudaStream_t>(handle_)));
  return {};
}

HostMailbox::~HostMailbox() {
  if (event_ != nullptr) (void)cudaEventDestroy(static_cast<cudaEvent_t>(event_));
  if (host_ != nullptr) (void)cudaFreeHost(host_);
}

Status HostMailbox::create(const GpuStream& stream, size_t bytes) {
  return on_gpu(stream.ordinal(), [&]() -> Status {
    FDPP_GPU(cudaHostAlloc(&host_, bytes, cudaHostAllocMapped | cudaHostAllocPortable));
    std::memset(host_, 0, bytes);
    bytes_ = bytes;
    FDPP_GPU(cudaHostGetDevicePointer(&device_, host_, 0));
    cudaEvent_t event = nullptr;
    FDPP_GPU(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    event_ = event;
    return {};
  });
}

Status HostMailbox::mark(const GpuStream& stream) {
  FDPP_GPU(cudaEventRecord(static_cast<cudaEvent_t>(event_), static_cast<cudaStream_t>(stream.handle())));
  return {};
}

Status HostMailbox::wait() const {
  FDPP_GPU(cudaEventSynchronize(static_cast<cudaEvent_t>(event_)));
  return {};
}

}  // namespace fdpp
