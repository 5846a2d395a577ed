// Where an op runs, and what its kernels may borrow from the runtime that calls them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "fdpp/status.h"

namespace fdpp {

enum class Backend : uint8_t { cpu, cuda, hip };
FDPP_API const char* backend_name(Backend backend);

// Ordered: a processor that has one level has all lower ones. avx2 implies FMA and F16C; avx512 implies F, BW, VL, DQ.
enum class CpuIsa : uint8_t { scalar, avx2, avx512 };
FDPP_API const char* cpu_isa_name(CpuIsa isa);

// Plain facts about one device. Selection reads nothing else, so it can be tested for a GPU that is not there.
struct DeviceInfo {
  Backend backend = Backend::cpu;
  int ordinal = 0;                       // GPU index as the driver counts; 0 on the CPU
  std::string name;                      // "NVIDIA H200", "Intel(R) Xeon(R) ..."
  // GPU
  int compute_capability = 0;            // 10 * major + minor, e.g. 90
  int multiprocessors = 0;
  int64_t l2_bytes = 0;
  int64_t shared_memory_per_block = 0;   // bytes a block can opt in to
  int64_t memory_bytes = 0;
  double memory_bandwidth = 0;           // bytes/s by clock and bus width; 0 where the driver does not say
  // CPU
  CpuIsa isa = CpuIsa::scalar;
  bool avx_vnni = false;                 // products of 8-bit integers in 256-bit vectors (AVX-VNNI)
  bool avx512_vnni = false;              // and in 512-bit ones
  int threads = 1;                       // hardware threads this process may use
  bool host_gemm = false;                // the calling runtime lends its own matrix product (HostRuntime::gemm)
};

// The processor this process runs on.
FDPP_API const DeviceInfo& cpu_device();

// GPU `ordinal`. not_supported: the library was built without GPU kernels. device_error: no such device, no driver.
FDPP_API Status gpu_device(int ordinal, DeviceInfo* out);

// The GPU that is current for the calling thread (runtimes select it before they call an op).
FDPP_API Status current_gpu_device(DeviceInfo* out);

// GPU architectures this build has machine code for ("sm_80 sm_90a"), or "" without GPU kernels.
FDPP_API const char* gpu_architectures();

// What CPU kernels borrow from the runtime that runs them. Functions take `state` first.
struct HostRuntime {
  void* state = nullptr;

  // Calls task(argument, i) for each i in [0, count), on as many threads as the runtime gives, and returns when all are
  // done. Null: the calling thread does it all.
  void (*parallel_for)(void* state, size_t count, void (*task)(void* argument, size_t index), void* argument) = nullptr;

  // C[M, N] = A[M, K] · B[N, K]ᵀ in float32, all dense row-major. Null: the runtime lends none.
  Status (*gemm)(void* state, int64_t m, int64_t n, int64_t k, const float* a, const float* b, float* c) = nullptr;
};

struct ExecutionContext {
  const HostRuntime* host = nullptr;  // CPU kernels; null runs them on the calling thread
  void* stream = nullptr;             // GPU kernels: cudaStream_t or hipStream_t
  // GPU kernels: device address of a DeviceFault's word, or null. Kernels report what only the device can see there.
  int32_t* fault = nullptr;
  // A DeviceCounter's word in the backend's memory, or null: attention adds the query rows (tokens times query heads)
  // whose scores left the interval of the unified softmax.
  uint64_t* out_of_range_rows = nullptr;
};

// A word that GPU kernels can set and the host can read without synchronising: how a kernel that finds bad values in
// device memory (sequence lengths) tells the host, which learns of it at the next call. Such a kernel also fills its
// output with NaN, so that no wrong result passes for a right one.
class FDPP_API DeviceFault {
 public:
  DeviceFault() = default;
  ~DeviceFault();
  DeviceFault(const DeviceFault&) = delete;
  DeviceFault& operator=(const DeviceFault&) = delete;

  // Allocates the word for the current GPU. Without GPU kernels: not_supported.
  Status create();
  int32_t* device_word() const { return device_; }
  // The fault reported since the last call, cleared; ok where there was none. `op` opens the message.
  Status take(const char* op);

 private:
  int32_t* host_ = nullptr;
  int32_t* device_ = nullptr;
};

// A number that kernels add to and the host reads now and then.
class FDPP_API DeviceCounter {
 public:
  DeviceCounter() = default;
  ~DeviceCounter();
  DeviceCounter(const DeviceCounter&) = delete;
  DeviceCounter& operator=(const DeviceCounter&) = delete;

  // Allocates the word, 0, in host memory or on the current GPU.
  Status create(Backend backend);
  uint64_t* word() const { return word_; }
  // What was counted so far; waits for the GPU. 0 before create().
  Status read(uint64_t* count) const;

 private:
  Backend backend_ = Backend::cpu;
  uint64_t* word_ = nullptr;
};

// A stream of one GPU for whoever queues work there: it runs in the order of the calls, and waits for no other stream's,
// the default stream's included.
class FDPP_API GpuStream {
 public:
  GpuStream() = default;
  ~GpuStream();
  GpuStream(const GpuStream&) = delete;
  GpuStream& operator=(const GpuStream&) = delete;

  // Without GPU kernels: not_supported. device_error: no such device, no driver.
  Status create(int ordinal);
  int ordinal() const { return ordinal_; }
  void* handle() const { return handle_; }  // cudaStream_t
  // Returns when all that was queued is done. device_error: some of it failed.
  Status wait() const;

 private:
  int ordinal_ = 0;
  void* handle_ = nullptr;
};

// Host memory that kernels on a stream write through, and a mark in the stream: the host reads what was written ahead of
// the mark without waiting for what is queued behind it.
class FDPP_API HostMailbox {
 public:
  HostMailbox() = default;
  ~HostMailbox();
  HostMailbox(const HostMailbox&) = delete;
  HostMailbox& operator=(const HostMailbox&) = delete;

  // Zeros, on the stream's GPU.
  Status create(const GpuStream& stream, size_t bytes);
  size_t bytes() const { return bytes_; }
  void* host() const { return host_; }
  void* device() const { return device_; }  // the same memory, as kernels address it
  // Moves the mark behind all that is queued by now on `stream`, which has to be one of the same GPU.
  Status mark(const GpuStream& stream);
  // Returns when the stream has come past the mark; at once where there is none. device_error: work ahead of it failed.
  Status wait() const;

 private:
  size_t bytes_ = 0;
  void* host_ = nullptr;
  void* device_ = nullptr;
  void* event_ = nullptr;
};

}  // namespace fdpp
