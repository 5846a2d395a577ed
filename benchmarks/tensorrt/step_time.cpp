// step_time ENGINE libfdpp_trt.so REPLAYS CASE...
//
// One step of an engine as a CUDA graph, for each case PROFILE/SHAPES, where PROFILE is a number and SHAPES is as trtexec has
// them. Prints a line a case: "captured", or "launched" where the step could not be captured in a graph, then the microseconds
// of each replay. Caches and tokens are random, masks ones; outputs named present.X share the buffer of the input past.X where
// both are of one shape.
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

// Of a tensor's elements.
std::vector<char> some_values(const std::string& name, DataType type) {
  static std::mt19937 random(0);
  if (type == DataType::kHALF) {
    std::normal_distribution<float> normal;
    std::vector<__half> numbers(1 << 19);
    for (__half& number : numbers) number = __float2half(normal(random));
    return {reinterpret_cast<char*>(numbers.data()), reinterpret_cast<char*>(numbers.data() + numbers.size())};
  }
  const bool mask = name.find("mask") != std::string::npos;
  std::vector<char> bytes;
  for (int i = 0; i < kTokens; ++i) {
    const int64_t value = mask ? 1 : static_cast<int64_t>(random() % kTokens);
    const char* const at = reinterpret_cast<const char*>(&value);
    bytes.insert(bytes.end(), at, at + (type == DataType::kINT32 ? 4 : 8));
  }
  return bytes;
}

size_t size_of(DataType type) {
  switch (type) {
    case DataType::kHALF: return 2;
    case DataType::kINT32: return 4;
    default: return 8;
  }
}

// Some values over and over.
void fill(const Buffer& buffer, const std::string& name, DataType type, size_t bytes) {
  const std::vector<char> values = some_values(name, type);
  char* const data = static_cast<char*>(buffer.data());
  size_t done = std::min(values.size(), bytes);
  check(cudaMemcpy(data, values.data(), done, cudaMemcpyHostToDevice), "cudaMemcpy");
  for (size_t more; done < bytes; done += more) {
    more = std::min(done, bytes - done);
    check(cudaMemcpy(data + done, data, more, cudaMemcpyDeviceToDevice), "cudaMemcpy");
  }
}

using Buffers = std::map<std::string, std::shared_ptr<Buffer>>;

Buffers bind(const nvinfer1::ICudaEngine& engine, nvinfer1::IExecutionContext& context) {
  Buffers buffers;
  for (int pass = 0; pass < 2; ++pass) {  // inputs, then outputs
    for (int i = 0; i < engine.getNbIOTensors(); ++i) {
      const std::string name = engine.getIOTensorName(i);
      if ((engine.getTensorIOMode(name.c_str()) == nvinfer1::TensorIOMode::kOUTPUT) != (pass == 1)) continue;
      const Dims dims = context.getTensorShape(name.c_str());
      std::shared_ptr<Buffer>& buffer = buffers[name];
      if (name.rfind("present.", 0) == 0) {
        const std::string past = "past." + name.substr(8);
        if (same(context.getTensorShape(past.c_str()), dims)) buffer = buffers.at(past);
      }
      if (buffer == nullptr) {
        const DataType type = engine.getTensorDataType(name.c_str());
        const size_t bytes = elements(dims) * size_of(type);
        buffer = std::make_shared<Buffer>(bytes);
        fill(*buffer, name, type, bytes);
      }
      require(context.setTensorAddress(name.c_str(), buffer->data()), "binding " + name);
    }
  }
  return buffers;
}

void measure(const nvinfer1::ICudaEngine& engine, nvinfer1::IExecutionContext& context, const std::string& shapes,
             int replays, cudaStream_t stream) {
  for_each_shape(shapes, [&](const std::string& name, const Dims& dims) {
    require(context.setInputShape(name.c_str(), dims), "setting the shape of " + name);
  });
  const Buffers buffers = bind(engine, context);
  for (int i = 0; i < 3; ++i) require(context.enqueueV3(stream), "a step");
  check(cudaStreamSynchronize(stream), "a step");
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replayed = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "beginning to capture");
  const bool queued = context.enqueueV3(stream);
  const bool captured = cudaStreamEndCapture(stream, &graph) == cudaSuccess && queued &&
                        cudaGraphInstantiate(&replayed, graph, 0) == cudaSuccess;
  (void)cudaGetLastError();
  std::printf(captured ? "captured" : "launched");

  cudaEvent_t start = nullptr, end = nullptr;
  check(cudaEventCreate(&start), "cudaEventCreate");
  check(cudaEventCreate(&end), "cudaEventCreate");
  for (int i = 0; i < replays; ++i) {
    check(cudaEventRecord(start, stream), "cudaEventRecord");
    if (captured)
      check(cudaGraphLaunch(replayed, stream), "cudaGraphLaunch");
    else
      require(context.enqueueV3(stream), "a step");
    check(cudaEventRecord(end, stream), "cudaEventRecord");
    check(cudaEventSynchronize(end), "a step");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, start, end), "cudaEventElapsedTime");
    std::printf(" %.2f", 1e3 * milliseconds);
  }
  std::printf("\n");
  if (replayed != nullptr) check(cudaGraphExecDestroy(replayed), "cudaGraphExecDestroy");
  if (graph != nullptr) check(cudaGraphDestroy(graph), "cudaGraphDestroy");
}

void measure_all(int argc, char** argv) {
  LoggerFinder finder;
  load_plugins(argv[2], finder);
  const std::string plan = read_file(argv[1]);
  const std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(finder.logger));
  const std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
  require(engine != nullptr, std::string("loading ") + argv[1]);
  const std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
  require(context != nullptr, "making a context");
  cudaStream_t stream = nullptr;
  check(cudaStreamCreate(&stream), "cudaStreamCreate");
  for (int i = 4; i < argc; ++i) {
    const std::string given = argv[i];
    const size_t slash = given.find('/');
    if (slash == std::string::npos) throw std::runtime_error("\"" + given + "\" is no PROFILE/SHAPES");
    require(context->setOptimizationProfileAsync(std::stoi(given.substr(0, slash)), stream), "choosing the profile");
    check(cudaStreamSynchronize(stream), "choosing the profile");
    measure(*engine, *context, given.substr(slash + 1), std::stoi(argv[3]), stream);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) {
    std::fprintf(stderr, "usage: %s ENGINE libfdpp_trt.so REPLAYS PROFILE/SHAPES...\n", argv[0]);
    return 2;
  }
  try {
    measure_all(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s: %s\n", argv[0], e.what());
    return 1;
  }
}
