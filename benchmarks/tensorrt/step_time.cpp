// step_time ENGINE libfdpp_trt.so PROFILE SHAPES REPLAYS
//
// One step of an engine as a CUDA graph: prints the microseconds of each replay, and on standard error whether the graph could
// be captured. SHAPES as trtexec has them. Caches and tokens are random, masks ones; outputs named present.X share the buffer of
// the input past.X where both are of one shape.
#include <cuda_fp16.h>

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "common.h"

namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

constexpr int kTokens = 1000;  // of any vocabulary

bool same(const Dims& a, const Dims& b) { return a.nbDims == b.nbDims && std::equal(a.d, a.d + a.nbDims, b.d); }

// Device memory that lives as long as the process.
void* filled(const std::string& name, DataType type, size_t count) {
  static std::mt19937 random(0);
  std::vector<char> host;
  if (type == DataType::kHALF) {
    // A megabyte of numbers over and over.
    std::normal_distribution<float> normal;
    std::vector<__half> numbers(count);
    const size_t drawn = std::min<size_t>(count, 1 << 19);
    for (size_t i = 0; i < drawn; ++i) numbers[i] = __float2half(normal(random));
    for (size_t i = drawn; i < count; ++i) numbers[i] = numbers[i - drawn];
    host.assign(reinterpret_cast<char*>(numbers.data()), reinterpret_cast<char*>(numbers.data() + count));
  } else {
    const bool mask = name.find("mask") != std::string::npos;
    for (size_t i = 0; i < count; ++i) {
      const int64_t value = mask ? 1 : static_cast<int64_t>(random() % kTokens);
      host.insert(host.end(), reinterpret_cast<const char*>(&value),
                  reinterpret_cast<const char*>(&value) + (type == DataType::kINT32 ? 4 : 8));
    }
  }
  void* device = nullptr;
  check(cudaMalloc(&device, std::max<size_t>(host.size(), 1)), "cudaMalloc");
  check(cudaMemcpy(device, host.data(), host.size(), cudaMemcpyHostToDevice), "cudaMemcpy");
  return device;
}

void measure(char** argv) {
  LoggerFinder finder;
  load_plugins(argv[2], finder);
  const std::string plan = read_file(argv[1]);
  const std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(finder.logger));
  const std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
  require(engine != nullptr, std::string("loading ") + argv[1]);
  const std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
  cudaStream_t stream = nullptr;
  check(cudaStreamCreate(&stream), "cudaStreamCreate");
  require(context->setOptimizationProfileAsync(std::stoi(argv[3]), stream), "choosing the profile");

  for_each_shape(argv[4], [&](const std::string& name, const Dims& dims) {
    require(context->setInputShape(name.c_str(), dims), "setting the shape of " + name);
  });
  std::map<std::string, void*> buffers;
  for (int pass = 0; pass < 2; ++pass) {  // inputs, then outputs
    for (int i = 0; i < engine->getNbIOTensors(); ++i) {
      const std::string name = engine->getIOTensorName(i);
      if ((engine->getTensorIOMode(name.c_str()) == nvinfer1::TensorIOMode::kOUTPUT) != (pass == 1)) continue;
      const Dims dims = context->getTensorShape(name.c_str());
      void* data = nullptr;
      if (name.rfind("present.", 0) == 0) {
        const std::string past = "past." + name.substr(8);
        if (same(context->getTensorShape(past.c_str()), dims)) data = buffers.at(past);
      }
      if (data == nullptr) data = filled(name, engine->getTensorDataType(name.c_str()), elements(dims));
      buffers[name] = data;
      require(context->setTensorAddress(name.c_str(), data), "binding " + name);
    }
  }

  for (int i = 0; i < 3; ++i) require(context->enqueueV3(stream), "a step");
  check(cudaStreamSynchronize(stream), "a step");
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replayed = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "beginning to capture");
  const bool queued = context->enqueueV3(stream);
  const bool captured = cudaStreamEndCapture(stream, &graph) == cudaSuccess && queued &&
                        cudaGraphInstantiate(&replayed, graph, 0) == cudaSuccess;
  (void)cudaGetLastError();
  std::fprintf(stderr, "%s\n", captured ? "captured" : "not captured");

  cudaEvent_t start = nullptr, end = nullptr;
  check(cudaEventCreate(&start), "cudaEventCreate");
  check(cudaEventCreate(&end), "cudaEventCreate");
  for (int i = 0; i < std::stoi(argv[5]); ++i) {
    check(cudaEventRecord(start, stream), "cudaEventRecord");
    if (captured)
      check(cudaGraphLaunch(replayed, stream), "cudaGraphLaunch");
    else
      require(context->enqueueV3(stream), "a step");
    check(cudaEventRecord(end, stream), "cudaEventRecord");
    check(cudaEventSynchronize(end), "a step");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, start, end), "cudaEventElapsedTime");
    std::printf("%.2f\n", 1e3 * milliseconds);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) {
    std::fprintf(stderr, "usage: %s ENGINE libfdpp_trt.so PROFILE SHAPES REPLAYS\n", argv[0]);
    return 2;
  }
  try {
    measure(argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s: %s\n", argv[0], e.what());
    return 1;
  }
}
