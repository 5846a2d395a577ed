// What GPU this is, and the word through which its kernels report faults.
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
  int current = 0;
  FDPP_GPU(cudaGetDevice(&current));
  FDPP_GPU(cudaSetDevice(attributes.device));
  // The kernels that add to it run on streams of their own, which the copy does not wait for.
  Status status = check_gpu(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  if (status.ok()) status = check_gpu(cudaMemcpy(count, word, sizeof(uint64_t), cudaMemcpyDeviceToHost), "cudaMemcpy");
  FDPP_GPU(cudaSetDevice(current));
  return status;
}

void free_gpu_counter(uint64_t* word) {
  if (word != nullptr) (void)cudaFree(word);
}

}  // namespace fdpp
