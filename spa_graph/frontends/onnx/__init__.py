"""The ONNX frontend: files and in-memory forms <-> `onnx_ir.Model` -> `Graph`, and the editing."""
