// Nanoseconds of plan_gemm(): what choosing a kernel adds to each call.
//
//   c++ -std=c++17 -O2 -Iplugins/include benchmarks/bench_lookup.cpp -L$LIB -lfdpp_ort -Wl,-rpath,$LIB -o bench_lookup
//   bench_lookup [TABLE N K M]     # a table of this machine's processor; default: the model of costs
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "fdpp/dispatch.h"

int main(int argc, char** argv) {
  const auto number = [&](int i, int otherwise) { return argc > i ? std::atoll(argv[i]) : otherwise; };
  if (argc > 1) {
    if (const fdpp::Status status = fdpp::load_table(argv[1]); !status.ok()) {
      std::fprintf(stderr, "bench_lookup: error: %s\n", status.message().c_str());
      return 1;
    }
  }
  fdpp::GemmProblem problem;
  problem.n = number(2, 4096);
  problem.k = number(3, 4096);
  problem.m = number(4, 8);
  problem.dtype = fdpp::DType::f32;
  fdpp::DeviceInfo device = fdpp::cpu_device();
  device.host_gemm = true;
  fdpp::GemmPlan plan;
  constexpr int kCalls = 1000000;
  double best = 1e9;
  for (int round = 0; round < 7; ++round) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kCalls; ++i) {
      if (!fdpp::plan_gemm(problem, device, &plan).ok()) return 1;
    }
    const std::chrono::duration<double, std::nano> elapsed = std::chrono::steady_clock::now() - start;
    best = elapsed.count() / kCalls < best ? elapsed.count() / kCalls : best;
  }
  std::printf("%.0f ns: %s (%s)\n", best, fdpp::variant_name(plan), plan.reason);
  return 0;
}
