// What processor this is.
#include <fstream>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

#include "fdpp/device.h"

namespace fdpp {
namespace {

CpuIsa detect_isa() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return CpuIsa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    return CpuIsa::avx2;
#endif
  return CpuIsa::scalar;
}

// Containers often may use fewer processors than the machine has; the affinity mask knows.
int usable_threads() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n ? static_cast<int>(n) : 1;
}

std::string processor_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(": ") + 2);
  }
  return "CPU";
}

}  // namespace

const char* backend_name(Backend backend) {
  switch (backend) {
    case Backend::cpu: return "cpu";
    case Backend::cuda: return "cuda";
    case Backend::hip: return "hip";
  }
  return "?";
}

const char* cpu_isa_name(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::scalar: return "scalar";
    case CpuIsa::avx2: return "avx2";
    case CpuIsa::avx512: return "avx512";
  }
  return "?";
}

const DeviceInfo& cpu_device() {
  static const DeviceInfo device = [] {
    DeviceInfo d;
    d.backend = Backend::cpu;
    d.name = processor_name();
    d.isa = detect_isa();
#if defined(__x86_64__) && defined(__GNUC__)
    d.avx_vnni = d.isa >= CpuIsa::avx2 && __builtin_cpu_supports("avxvnni");
    d.avx512_vnni = d.isa >= CpuIsa::avx512 && __builtin_cpu_supports("avx512vnni");
#endif
    d.threads = usable_threads();
    return d;
  }();
  return device;
}

}  // namespace fdpp
