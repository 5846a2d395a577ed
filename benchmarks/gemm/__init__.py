"""The parts of bench_gemm.py: cases, operands, the candidates that are timed, and the report."""
