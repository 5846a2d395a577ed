// TensorRT 8's interface over PluginCore.
#pragma once

#include "tensorrt/calls.h"

namespace fdpp::trt {

// The creators of the ops' plugins, which live as long as the library.
const std::vector<nvinfer1::IPluginCreator*>& creators_v2();

}  // namespace fdpp::trt
