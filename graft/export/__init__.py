"""One ONNX file for each precision, checked before it ships: see `graft.export.stage`."""
