"""The parts of bench_attention.py: cases, operands, the candidates that are timed, and the report."""
