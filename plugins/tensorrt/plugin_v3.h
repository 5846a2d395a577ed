// TensorRT 10's interface over PluginCore.
#pragma once

#include "tensorrt/calls.h"

namespace fdpp::trt {

// The creators of the ops' plugins, which live as long as the library.
const std::vector<nvinfer1::IPluginCreatorInterface*>& creators_v3();

}  // namespace fdpp::trt
