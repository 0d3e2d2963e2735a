"""Export a trained student as a model of stock nnU-Net or as ONNX, and predict with the ONNX model."""
