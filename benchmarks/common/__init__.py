"""What the GPU benchmarks share: running cases within a time, result files, cold operands, ONNX Runtime."""
