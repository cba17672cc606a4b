"""Running networks: ONNX Runtime sessions, random inputs, verification, latency, reports."""
