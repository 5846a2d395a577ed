// trt_generate ENGINE libfdpp_trt.so NEW_TOKENS [END_TOKEN] < IDS
//
// Reads the token ids of a prompt, prints those that the model puts after it: greedily, batch 1. The engine has two profiles,
// of prompts and of single tokens; its caches stay in place, past and present being one buffer.
#include <cuda_fp16.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <iostream>
#include <map>
#include <vector>

#include "common.h"

namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

constexpr int kPrompts = 0, kTokens = 1;  // profiles

size_t size_of(DataType type) {
  switch (type) {
    case DataType::kFLOAT:
    case DataType::kINT32: return 4;
    case DataType::kHALF: return 2;
    case DataType::kINT8: return 1;
#if NV_TENSORRT_MAJOR >= 10
    case DataType::kINT64: return 8;
    case DataType::kBF16: return 2;
    case DataType::kFP8: return 1;
#endif
    default: throw std::runtime_error("a tensor has a type that this program does not know");
  }
}

// "past_key_values.3.key" and "present.3.key" are the two ends of one cache.
std::string cache_of(const std::string& name) {
  for (const char* start : {"past_key_values.", "present."})
    if (name.rfind(start, 0) == 0) return name.substr(std::string(start).size());
  return "";
}

class Model {
 public:
  Model(const std::string& engine, const std::string& library) {
    load_plugins(library, finder_);
    const std::string plan = read_file(engine);
    runtime_.reset(nvinfer1::createInferRuntime(finder_.logger));
    engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
    require(engine_ != nullptr, "loading " + engine);
    if (engine_->getNbOptimizationProfiles() < 2)
      throw std::runtime_error(engine + " has one profile, expected two: of prompts and of single tokens");
    check(cudaStreamCreate(&stream_), "cudaStreamCreate");
    for (int profile : {kPrompts, kTokens}) {
      contexts_.emplace_back(engine_->createExecutionContext());
      require(contexts_.back() != nullptr && contexts_.back()->setOptimizationProfileAsync(profile, stream_),
              "making a context");
    }
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    for (int i = 0; i < engine_->getNbIOTensors(); ++i) add(engine_->getIOTensorName(i));
    for (const char* name : {"input_ids", "attention_mask", "logits"})
      if (buffers_.count(name) == 0) throw std::runtime_error(engine + " has no tensor " + name);
  }
  ~Model() { cudaStreamDestroy(stream_); }

  int64_t longest_prompt() const {
    return engine_->getProfileShape("input_ids", kPrompts, nvinfer1::OptProfileSelector::kMAX).d[1];
  }
  int64_t longest() const {
    return engine_->getProfileShape("attention_mask", kTokens, nvinfer1::OptProfileSelector::kMAX).d[1];
  }

  // The likeliest token after `ids`, of which the caches hold none yet; `length`: of all tokens so far, these included.
  int64_t next(const std::vector<int64_t>& ids, int64_t length) {
    nvinfer1::IExecutionContext& context = *contexts_[ids.size() > 1 ? kPrompts : kTokens];
    fill(context, "input_ids", ids);
    fill(context, "attention_mask", std::vector<int64_t>(static_cast<size_t>(length), 1));
    if (buffers_.count("position_ids") != 0) {
      std::vector<int64_t> positions;
      for (size_t i = 0; i < ids.size(); ++i) positions.push_back(length - static_cast<int64_t>(ids.size() - i));
      fill(context, "position_ids", positions);
    }
    for (const auto& [name, shape] : cache_shapes_)
      require(context.setInputShape(name.c_str(), shape), "setting the shape of " + name);
    for (const auto& [name, buffer] : buffers_)
      require(context.setTensorAddress(name.c_str(), buffer->data()), "setting the address of " + name);
    require(context.enqueueV3(stream_), "a step");
    return likeliest(context);
  }

 private:
  void add(const std::string& name) {
    const std::string cache = cache_of(name);
    const bool input = engine_->getTensorIOMode(name.c_str()) == nvinfer1::TensorIOMode::kINPUT;
    const auto most = nvinfer1::OptProfileSelector::kMAX;
    const DataType type = engine_->getTensorDataType(name.c_str());
    if (input) {
      size_t bytes = 0;
      for (int profile : {kPrompts, kTokens})
        bytes = std::max(bytes, elements(engine_->getProfileShape(name.c_str(), profile, most)) * size_of(type));
      std::shared_ptr<Buffer>& buffer = cache.empty() ? buffers_[name] : caches_[cache];
      if (buffer == nullptr) buffer = std::make_shared<Buffer>(bytes);
      buffers_[name] = buffer;
      if (cache.empty()) return;
      cache_shapes_[name] = engine_->getProfileShape(name.c_str(), kTokens, most);
      cache_shapes_[name].d[0] = 1;
    } else if (!cache.empty()) {
      if (caches_.count(cache) == 0) throw std::runtime_error(name + " has no past");
      buffers_[name] = caches_[cache];
    } else {
      // Of as many rows as the longest prompt has, where the model gives logits of all.
      const Dims shape = engine_->getTensorShape(name.c_str());
      const size_t rows = shape.nbDims == 3 && shape.d[1] < 0 ? static_cast<size_t>(longest_prompt()) : 1;
      buffers_[name] = std::make_shared<Buffer>(rows * static_cast<size_t>(shape.d[shape.nbDims - 1]) * size_of(type));
    }
  }

  // [1, values.size()], of 32 or 64 bits as the engine has it.
  void fill(nvinfer1::IExecutionContext& context, const char* name, const std::vector<int64_t>& values) {
    Dims shape{};
    append(shape, 1);
    append(shape, static_cast<int64_t>(values.size()));
    require(context.setInputShape(name, shape), std::string("setting the shape of ") + name);
    std::vector<int32_t> narrow(values.begin(), values.end());
    const bool wide = size_of(engine_->getTensorDataType(name)) == 8;
    const void* const from = wide ? static_cast<const void*>(values.data()) : narrow.data();
    const size_t bytes = values.size() * (wide ? 8 : 4);
    check(cudaMemcpyAsync(buffers_.at(name)->data(), from, bytes, cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync");
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");  // `narrow` ends here
  }

  int64_t likeliest(nvinfer1::IExecutionContext& context) {
    const Dims shape = context.getTensorShape("logits");
    const size_t width = static_cast<size_t>(shape.d[shape.nbDims - 1]), rows = elements(shape) / width;
    const DataType type = engine_->getTensorDataType("logits");
    std::vector<char> row(width * size_of(type));
    const char* const last = static_cast<const char*>(buffers_.at("logits")->data()) + (rows - 1) * row.size();
    check(cudaMemcpyAsync(row.data(), last, row.size(), cudaMemcpyDeviceToHost, stream_), "cudaMemcpyAsync");
    check(cudaStreamSynchronize(stream_), "a step");
    const auto value = [&](size_t i) {
      if (type == DataType::kHALF) return __half2float(reinterpret_cast<const __half*>(row.data())[i]);
      return reinterpret_cast<const float*>(row.data())[i];
    };
    size_t best = 0;
    for (size_t i = 1; i < width; ++i)
      if (value(i) > value(best)) best = i;
    return static_cast<int64_t>(best);
  }

  LoggerFinder finder_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::vector<std::unique_ptr<nvinfer1::IExecutionContext>> contexts_;
  std::map<std::string, std::shared_ptr<Buffer>> buffers_, caches_;
  std::map<std::string, Dims> cache_shapes_;
  cudaStream_t stream_ = nullptr;
};

void generate(const std::string& engine, const std::string& library, int64_t count, int64_t end_token) {
  std::vector<int64_t> ids;
  for (int64_t id; std::cin >> id;) ids.push_back(id);
  if (ids.empty()) throw std::runtime_error("no token ids on standard input");
  Model model(engine, library);
  const int64_t prompt = static_cast<int64_t>(ids.size());
  if (prompt > model.longest_prompt() || prompt + count > model.longest())
    throw std::runtime_error(std::to_string(prompt) + " tokens and " + std::to_string(count) + " new ones, expected up to " +
                             std::to_string(model.longest_prompt()) + " and " + std::to_string(model.longest()) +
                             " together, as the engine's profiles have them");
  int64_t length = prompt;
  double seconds = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const int64_t id = model.next(ids, length);
    if (i > 0) seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::cout << id << (i + 1 < count ? " " : "\n") << std::flush;
    if (id == end_token) break;
    ids.assign(1, id);
    ++length;
  }
  if (count > 1) std::fprintf(stderr, "%.2f ms a token\n", 1e3 * seconds / static_cast<double>(count - 1));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4 || argc > 5) {
    std::fprintf(stderr, "usage: %s ENGINE libfdpp_trt.so NEW_TOKENS [END_TOKEN] < IDS\n", argv[0]);
    return 2;
  }
  try {
    generate(argv[1], argv[2], std::stoll(argv[3]), argc > 4 ? std::stoll(argv[4]) : -1);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s: %s\n", argv[0], e.what());
    return 1;
  }
}
