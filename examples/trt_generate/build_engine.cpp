// build_engine [--level=N] [--cublas] MODEL.onnx libfdpp_trt.so ENGINE PROFILE...
//
// Each PROFILE is three lists of shapes as trtexec takes them, parted by "/": least, best and most, for instance
//   input_ids:1x1,attention_mask:1x1/input_ids:1x512,attention_mask:1x512/input_ids:1x2048,attention_mask:1x2048
// fdpp-export writes them to profiles.json beside the model. trtexec and polygraphy do the same and more.
//
// For what the plugins do not do: --level is TensorRT's builder optimisation level, 0 to 5, --cublas lets it try cuBLAS, which
// must then be where the loader finds it.
#include <NvOnnxParser.h>

#include <cstring>

#include "common.h"

namespace {

struct Options {
  int level = -1;  // TensorRT's own choice
  bool cublas = false;
};

// Takes them off argv.
Options read_options(int& argc, char**& argv) {
  Options options;
  for (; argc > 1 && std::strncmp(argv[1], "--", 2) == 0; --argc, ++argv) {
    const std::string option = argv[1];
    if (option == "--cublas") {
      options.cublas = true;
    } else if (option.size() == 9 && option.rfind("--level=", 0) == 0 && option[8] >= '0' && option[8] <= '5') {
      options.level = option[8] - '0';
    } else {
      throw std::runtime_error(option + " is no option: there are --level=0 to --level=5 and --cublas");
    }
  }
  return options;
}

void build(const Options& options, int argc, char** argv) {
  const std::string model = argv[1], library = argv[2], engine = argv[3];
  LoggerFinder finder;
  load_plugins(library, finder);
  const std::unique_ptr<nvinfer1::IBuilder> builder(nvinfer1::createInferBuilder(finder.logger));
  require(builder != nullptr, "making a builder");
#if NV_TENSORRT_MAJOR >= 10
  constexpr uint32_t kFlags = 0;
#else
  constexpr uint32_t kFlags = 1U << static_cast<uint32_t>(nvinfer1::NetworkDefinitionCreationFlag::kEXPLICIT_BATCH);
#endif
  const std::unique_ptr<nvinfer1::INetworkDefinition> network(builder->createNetworkV2(kFlags));
  const std::unique_ptr<nvonnxparser::IParser> parser(nvonnxparser::createParser(*network, finder.logger));
  require(parser->parseFromFile(model.c_str(), static_cast<int>(nvinfer1::ILogger::Severity::kWARNING)),
          "parsing " + model);

  const std::unique_ptr<nvinfer1::IBuilderConfig> config(builder->createBuilderConfig());
  config->setFlag(nvinfer1::BuilderFlag::kFP16);
#if NV_TENSORRT_MAJOR > 10 || (NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR >= 3)
  config->setPreviewFeature(nvinfer1::PreviewFeature::kALIASED_PLUGIN_IO_10_03, true);  // present in past's memory
#endif
  // What the plugins leave over needs no library.
  constexpr uint32_t kCublas = 1U << static_cast<uint32_t>(nvinfer1::TacticSource::kCUBLAS) |
                               1U << static_cast<uint32_t>(nvinfer1::TacticSource::kCUBLAS_LT);
  config->setTacticSources(options.cublas ? kCublas : 0);
  if (options.level >= 0) config->setBuilderOptimizationLevel(options.level);
  for (int i = 4; i < argc; ++i) {
    nvinfer1::IOptimizationProfile* const profile = builder->createOptimizationProfile();
    std::stringstream stream(argv[i]);
    for (auto which : {nvinfer1::OptProfileSelector::kMIN, nvinfer1::OptProfileSelector::kOPT,
                       nvinfer1::OptProfileSelector::kMAX}) {
      std::string shapes;
      require(static_cast<bool>(std::getline(stream, shapes, '/')), std::string("reading the profile ") + argv[i]);
      for_each_shape(shapes, [&](const std::string& name, const nvinfer1::Dims& dims) {
        require(profile->setDimensions(name.c_str(), which, dims), "setting the shape of " + name);
      });
    }
    require(config->addOptimizationProfile(profile) >= 0, std::string("adding the profile ") + argv[i]);
  }
  const std::unique_ptr<nvinfer1::IHostMemory> plan(builder->buildSerializedNetwork(*network, *config));
  require(plan != nullptr, "building the engine");

  // Beside, then renamed: an engine is whole or not there.
  const std::string part = engine + ".part";
  std::ofstream file(part, std::ios::binary);
  file.write(static_cast<const char*>(plan->data()), static_cast<std::streamsize>(plan->size()));
  file.close();
  if (!file || std::rename(part.c_str(), engine.c_str()) != 0) throw std::runtime_error(engine + ": cannot be written");
  std::printf("%s: %zu bytes, TensorRT %d\n", engine.c_str(), plan->size(), getInferLibVersion());
}

}  // namespace

int main(int argc, char** argv) {
  const char* const program = argv[0];
  try {
    const Options options = read_options(argc, argv);
    if (argc < 5) {
      std::fprintf(stderr, "usage: %s [--level=N] [--cublas] MODEL.onnx libfdpp_trt.so ENGINE LEAST/BEST/MOST...\n",
                   program);
      return 2;
    }
    build(options, argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s: %s\n", program, e.what());
    return 1;
  }
}
